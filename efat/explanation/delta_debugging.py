"""From many things that do something together to a few that still do: delta debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def minimal_subset(items: Sequence[int], holds: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """Find a subset that still holds, and that no item can be left out of.

    It is the algorithm ddmin of Zeller and Hildebrandt ("Simplifying and isolating failure-inducing input", IEEE
    Transactions on Software Engineering 28, 2002): parts that hold by themselves are tried first, then what is left
    without a part, then smaller parts. One item that matters among n is found in about 2 log2(n) runs; at worst there
    are in the order of n squared.

    Args:
        items: different items; all of them together hold. Their order decides which subset is found.
        holds: whether a subset, in the order of the items, holds; the same answer each time. No subset is asked for
            twice.

    Returns:
        The subset in the order of the items; empty if nothing is needed.
    """
    known: dict[tuple[int, ...], bool] = {}

    def asked(subset: tuple[int, ...]) -> bool:
        if subset not in known:
            known[subset] = holds(subset)
        return known[subset]

    kept, count = tuple(items), 2
    if not kept or asked(()):
        return ()
    while len(kept) > 1:
        parts = _parts(kept, count)
        part = next((part for part in parts if asked(part)), None)
        if part is not None:
            kept, count = part, 2
            continue
        rests = [tuple(item for item in kept if item not in set(part)) for part in parts]
        rest = next((rest for rest in rests if asked(rest)), None)
        if rest is not None:
            kept, count = rest, max(count - 1, 2)
        elif count < len(kept):
            count = min(2 * count, len(kept))
        else:
            break
    return kept


def _parts(items: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Cut into `count` parts of about the same size, none of them empty."""
    bounds = [len(items) * number // count for number in range(count + 1)]
    return [items[bounds[number] : bounds[number + 1]] for number in range(count)]
