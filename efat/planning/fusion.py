"""Which chips of a lot to retrain together: groups that share one retraining, for the union of their bypass masks.

As in eFAT (Hanif & Shafique 2023, arXiv 2304.12949): a network retrained with the PEs of several chips bypassed runs on
each of them. How much retraining a mask takes is looked up by its severity, in a table measured beforehand. Merging
chips saves retraining as long as the union of their masks takes less than they do one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from efat.planning.fusion_kernel import Groups, Levels, Masks, Tournament, compare, merge, weights_removed
from efat.resilience.severity import total_weights
from simulator.dtypes import BoolArray, Float64Array, Int64Array, UInt8Array, UInt64Array
from simulator.errors import InputError

Mask = BoolArray | UInt8Array
"""The PEs of a chip that are to be bypassed: bool [R, C], or packed as in lots, uint8 [bytes] (`np.packbits`)."""

_BLOCK_CHIPS = 64
_WORD_BITS = 64


class ChipMasks:
    """The masks of some chips on one network.

    Args:
        bypasses: a mask of each chip, taken one by one.
        weights: int64 [R, C], what each PE holds.

    Attributes:
        total: weights of the network.
        shape: rows and columns of the array.
        packed: uint8 [chips, bytes], the masks in the order of `np.packbits`.
        masks: the masks in words, without PEs that hold no weights.
        removed: int64 [chips], the weights that each removes.

    Raises:
        InputError: masks of another type or shape, or weights that `total_weights` refuses.
    """

    def __init__(self, bypasses: Iterable[Mask], weights: Int64Array) -> None:
        self.total = total_weights(weights)
        self.shape = (weights.shape[0], weights.shape[1])
        pes, bounds, factors = _words(weights.ravel().astype(np.int64))
        packed: list[UInt8Array] = [np.empty((0, -(-weights.size // 8)), np.uint8)]
        words: list[UInt64Array] = [np.empty((0, len(pes) // _WORD_BITS), np.uint64)]
        masks = iter(bypasses)
        count = 0
        while block := list(islice(masks, _BLOCK_CHIPS)):
            # The last bit, which is never set, fills words up.
            bits = np.zeros((len(block), weights.size + 1), np.bool_)
            for row, mask in zip(bits, block, strict=True):
                row[:-1] = self._flat(mask, count)
                count += 1
            packed.append(np.packbits(bits[:, :-1], axis=1))
            words.append(np.packbits(np.take(bits, pes, axis=1), axis=1).view(np.uint64))
        self.packed = np.concatenate(packed)
        self.masks = Masks(np.concatenate(words), bounds, factors)
        self.removed = np.array([weights_removed(self.masks, chip, chip) for chip in range(count)], np.int64)

    def __len__(self) -> int:
        return len(self.packed)

    def packed_together(self, chips: Sequence[int]) -> UInt8Array:
        """The PEs that any of some chips bypasses, packed: uint8 [bytes]."""
        together: UInt8Array = np.bitwise_or.reduce(self.packed[chips], axis=0)
        return together

    def removed_together(self, chips: Sequence[int]) -> int:
        """The weights that some chips remove together."""
        if len(chips) == 1:
            return int(self.removed[chips[0]])
        together = np.bitwise_or.reduce(self.masks.words[chips], axis=0)
        return weights_removed(self.masks._replace(words=together[None]), 0, 0)

    def _flat(self, mask: Mask, chip: int) -> npt.NDArray[np.generic]:
        rows, cols = self.shape
        packed_shape = (-(-rows * cols // 8),)
        if mask.dtype == np.bool_ and mask.shape == self.shape:
            return mask.ravel()
        if mask.dtype == np.uint8 and mask.shape == packed_shape:
            return np.unpackbits(mask.astype(np.uint8, copy=False), count=rows * cols)
        raise InputError(
            f"bypass of chip {chip} is {mask.dtype} {mask.shape}: expected bool {self.shape}, as the weights have, or "
            f"packed uint8 {packed_shape}"
        )


def _words(weights: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Spread PEs over words whose bits all stand for the same number of weights.

    PEs are sorted by their weights, and those without any left out. Few words have PEs of different weights, as layers
    fill the array in rectangles. What these have above the least of them stands in further words, one for each digit
    of a binary number.

    Args:
        weights: int64 [PEs], what each holds.

    Returns:
        The PE of each bit, int64 [64 * words], one past the last for none; where runs of words begin that stand for
        the same number, and the last one ends, int64 [runs + 1]; the number, int64 [runs].
    """
    order = np.argsort(weights, kind="stable")
    order = order[weights[order] > 0]
    words: dict[int, list[Int64Array]] = {}
    for start in range(0, len(order), _WORD_BITS):
        pes = order[start : start + _WORD_BITS]
        least = int(weights[pes[0]])
        words.setdefault(least, []).append(pes)
        above = weights[pes] - least
        for digit in range(int(above[-1]).bit_length()):
            words.setdefault(1 << digit, []).append(pes[above >> digit & 1 == 1])
    factors = sorted(words)
    filled = np.full((sum(len(words[factor]) for factor in factors), _WORD_BITS), len(weights))
    for row, pes in zip(filled, (pes for factor in factors for pes in words[factor]), strict=True):
        row[: len(pes)] = pes
    bounds = np.cumsum([0, *(len(words[factor]) for factor in factors)])
    return filled.ravel(), bounds.astype(np.int64), np.array(factors, np.int64)


Progress = Callable[[int, int], None]
"""Called with the number of steps that are done, and how many there are at most."""

MOST_FUSED = 20_000
"""Chips that `fuse` compares with each other, in 8 bytes for each two of them in either order."""

MOST_EXACT = 10
"""Chips of which `best_partition` tries all partitions."""

_KEPT = 32
"""Partners that are kept of each group: with fewer, all are searched more often for the next ones."""
_MOST_TOGETHER = 64
_TILE_BYTES = 1 << 17
"""Masks that are compared with all others together: half of a second-level cache."""
_STEPS = 1 << 12
"""Between looks at Ctrl-C: a fraction of a second."""


@dataclass(frozen=True, eq=False)
class AmountMap:
    """How much retraining a chip takes by its severity, as measured at some severities.

    Between two of them it is taken to be what the larger one takes: as long as a larger severity never takes less, no
    chip gets less than it takes.

    Args:
        severities: float64 [points], 0..1, strictly ascending.
        amounts: float64 [points], of each, for instance in iterations: 0 or more, non-decreasing, infinite where no
            amount is enough.

    Raises:
        InputError: values that are out of range or order, or not one for each.
    """

    severities: Float64Array
    amounts: Float64Array

    def __post_init__(self) -> None:
        for name in ("severities", "amounts"):
            values = np.array(getattr(self, name), np.float64)
            if values.ndim != 1 or not values.size:
                raise InputError(f"{name} have shape {values.shape}: expected one dimension, at least one value")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if len(self.severities) != len(self.amounts):
            raise InputError(f"{len(self.severities)} severities and {len(self.amounts)} amounts: expected one of each")
        _refuse(self.severities, ~((self.severities >= 0) & (self.severities <= 1)), "a severity", "0..1")
        _refuse(self.severities[1:], ~(np.diff(self.severities) > 0), "a severity", "more than the one before")
        _refuse(self.amounts, ~(self.amounts >= 0), "an amount", "0 or more")
        _refuse(self.amounts[1:], ~(self.amounts[1:] >= self.amounts[:-1]), "an amount", "no less than the one before")

    def amount(self, severity: npt.ArrayLike) -> Float64Array:
        """Look up the amount of the first measured severity that is not below a severity.

        Args:
            severity: float64 [...], 0..1.

        Returns:
            float64 [...]; infinite beyond the last measured severity.

        Raises:
            InputError: a severity outside 0..1.
        """
        values = np.asarray(severity, np.float64)
        _refuse(values, ~((values >= 0) & (values <= 1)), "a severity", "0..1")
        return np.asarray(np.append(self.amounts, np.inf)[np.searchsorted(self.severities, values)])

    def levels(self, total: int) -> tuple[Int64Array, Float64Array]:
        """List the finite amounts, and up to which number of weights removed each is enough.

        Args:
            total: weights of the network.

        Returns:
            int64 [levels] ascending and float64 [levels] strictly ascending.
        """
        limits: list[int] = []
        amounts: list[float] = []
        for severity, amount in zip(self.severities.tolist(), self.amounts.tolist(), strict=True):
            if np.isinf(amount):
                break
            limit = int(severity * total)
            # Exactly where `amount` has its steps: it divides, which rounds otherwise than to multiply.
            while (limit + 1) / total <= severity:
                limit += 1
            while limit / total > severity:
                limit -= 1
            if amounts and amounts[-1] == amount:
                limits.pop()
                amounts.pop()
            limits.append(limit)
            amounts.append(amount)
        return np.array(limits, np.int64), np.array(amounts, np.float64)


@dataclass(frozen=True, eq=False)
class Group:
    """Chips that share one retraining.

    Attributes:
        members: positions of the chips in the lot, ascending.
        packed: uint8 [bytes], the PEs that any of them bypasses, in the order of `np.packbits`.
        shape: rows and columns of the array.
        severity: the fraction of the network's weights that these PEs remove.
        amount: the amount of retraining that takes; infinite if none is enough.
    """

    members: tuple[int, ...]
    packed: UInt8Array
    shape: tuple[int, int]
    severity: float
    amount: float

    @property
    def bypass(self) -> BoolArray:
        """The PEs that any of them bypasses, bool [R, C]; made anew each time, as thousands take much memory."""
        rows, cols = self.shape
        return np.unpackbits(self.packed, count=rows * cols).astype(np.bool_).reshape(rows, cols)


def fuse(
    bypasses: Iterable[Mask], weights: Int64Array, amounts: AmountMap, progress: Progress | None = None
) -> list[Group]:
    """Merge chips into groups as long as that saves retraining, each time the two groups that save most.

    Merging A and B saves amount(A) + amount(B) - amount(A or B). Of pairs that save the same, the one with the smallest
    severity together is merged, which leaves room for others; then the one with the smallest chips. Merges that save
    nothing are not made: chips that need no retraining stay alone. So do chips whose own severity takes an infinite
    amount. The result depends on nothing but the arguments. It need not be the best partition, see `best_partition`.

    Takes 8 bytes for each two chips that need a finite amount above 0, in either order (0.8 GB for 10,000 of them), and
    three bits for each PE of each chip, or more if many PEs hold different numbers of weights.

    Args:
        bypasses: a mask of each chip, taken one by one; all bool [R, C] or packed.
        weights: int64 [R, C], what each PE holds, see `efat.resilience.severity.weights_per_pe`.
        amounts: the amount of retraining by severity.
        progress: called from time to time.

    Returns:
        The groups, by their smallest chips.

    Raises:
        InputError: masks of another type or shape, weights that `total_weights` refuses, or more chips than
            `MOST_FUSED` that need a finite amount above 0.
    """
    masks = ChipMasks(bypasses, weights)
    own = amounts.amount(masks.removed / masks.total)
    chips = np.flatnonzero((own > 0) & np.isfinite(own))
    if len(chips) > MOST_FUSED:
        raise InputError(f"{len(chips)} chips need retraining: expected at most {MOST_FUSED}; fuse parts of the lot")
    # Each looks for partners among those behind it. With the least first, chips of low severity, which suit all others
    # best, are not the first choice of all others at once.
    chips = chips[np.argsort(masks.removed[chips], kind="stable")]
    members = {chip: [chip] for chip in range(len(masks))}
    if len(chips):
        for kept, gone in _merges(masks, chips, amounts, progress):
            members[kept] += members.pop(gone)
    return _groups(masks, amounts, members.values())


def fuse_in_order(bypasses: Iterable[Mask], weights: Int64Array, amounts: AmountMap, size: int) -> list[Group]:
    """Merge chips as they come, so many at a time, whatever their severities are.

    A chip whose own severity takes an infinite amount makes its group's infinite.
    """
    if size < 1:
        raise InputError(f"size of groups is {size}: expected 1 or more chips")
    masks = ChipMasks(bypasses, weights)
    return _groups(masks, amounts, (range(len(masks))[start : start + size] for start in range(0, len(masks), size)))


def singles(bypasses: Iterable[Mask], weights: Int64Array, amounts: AmountMap) -> list[Group]:
    """Leave every chip alone: a group for each, in order."""
    return fuse_in_order(bypasses, weights, amounts, 1)


def best_partition(bypasses: Iterable[Mask], weights: Int64Array, amounts: AmountMap) -> list[Group]:
    """Find the groups that take the least retraining in total, by trying all partitions of at most `MOST_EXACT` chips.

    Of several with the same total it is one with as many groups as possible. As with `fuse`, chips whose own severity
    takes an infinite amount stay alone.
    """
    masks = ChipMasks(bypasses, weights)
    if len(masks) > MOST_EXACT:
        raise InputError(f"there are {len(masks)} chips: expected at most {MOST_EXACT} to try all partitions of")
    finite = np.isfinite(amounts.amount(masks.removed / masks.total))
    chips = np.flatnonzero(finite).tolist()
    members = [[chip] for chip in np.flatnonzero(~finite).tolist()]
    # Sets of chips as numbers, a bit for each chip: the least total of each set, minus the number of groups it takes,
    # and the group in it with the largest chip.
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]
    group_amount = [0.0]
    for chosen in range(1, 1 << len(chips)):
        inside = [chip for place, chip in enumerate(chips) if chosen >> place & 1]
        group_amount.append(float(amounts.amount(masks.removed_together(inside) / masks.total)))
        largest = 1 << (chosen.bit_length() - 1)
        others = rest = chosen ^ largest
        found = []
        # All sets of the others, none of them last.
        while True:
            before = best[others ^ rest]
            found.append((before[0] + group_amount[rest | largest], before[1] - 1, rest | largest))
            if not rest:
                break
            rest = (rest - 1) & others
        best.append(min(found))
    left = (1 << len(chips)) - 1
    while left:
        group = best[left][2]
        members.append([chip for place, chip in enumerate(chips) if group >> place & 1])
        left ^= group
    return _groups(masks, amounts, members)


def _groups(masks: ChipMasks, amounts: AmountMap, all_members: Iterable[Sequence[int]]) -> list[Group]:
    groups = []
    for members in all_members:
        severity = masks.removed_together(members) / masks.total
        groups.append(
            Group(
                members=tuple(sorted(members)),
                packed=masks.packed_together(members),
                shape=masks.shape,
                severity=severity,
                amount=float(amounts.amount(severity)),
            )
        )
    return sorted(groups, key=lambda group: group.members)


def _merges(
    masks: ChipMasks, chips: Int64Array, amounts: AmountMap, progress: Progress | None
) -> list[tuple[int, int]]:
    """What is merged one after the other: a chip of the group that stays, and one of the group that joins it."""
    count = len(chips)
    groups = Groups(
        masks=masks.masks._replace(words=masks.masks.words[chips]),
        levels=Levels(*amounts.levels(masks.total)),
        union=np.empty((count, count), np.int64),
        amount=amounts.amount(masks.removed[chips] / masks.total),
        first=chips.copy(),
        birth=-1 - np.arange(count),
        alive=np.arange(count),
        place=np.arange(count),
        partners=np.empty((count, _KEPT), np.int64),
        begin=np.zeros(count, np.int64),
        end=np.zeros(count, np.int64),
        best=_unplayed(count),
        merges=np.empty((count, 2), np.int64),
        counts=np.array([count, 0]),
    )
    # A step for each chip compared with the others, and one for each that may be merged.
    steps = 2 * count

    def report(done: int) -> None:
        if progress is not None:
            progress(done, steps)

    _compare_all(groups, report)
    while not merge(groups, _STEPS):
        report(count + int(groups.counts[1]))
    report(steps)
    return [(kept, gone) for kept, gone in chips[groups.merges[: groups.counts[1]]].tolist()]


def _unplayed(count: int) -> Tournament:
    """A tournament of groups of which nothing is known: of any two the one further left wins."""
    leaves = 1 << (count - 1).bit_length()
    tree = np.full(2 * leaves, -1)
    tree[leaves : leaves + count] = np.arange(count)
    for node in range(leaves - 1, 0, -1):
        tree[node] = tree[2 * node]
    return Tournament(np.full(count, np.inf), np.zeros(count, np.int64), np.zeros((count, 2), np.int64), tree)


def _compare_all(groups: Groups, report: Callable[[int], None]) -> None:
    """Count what every two groups remove together, on as many threads as torch uses."""
    count = len(groups.masks.words)
    tile = max(1, min(_MOST_TOGETHER, _TILE_BYTES // int(groups.masks.words[0].nbytes)))

    def compare_tile(start: int) -> int:
        stop = min(start + tile, count)
        compare(groups.masks, start, stop, groups.union)
        return stop

    pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="fusion")
    try:
        for stop in pool.map(compare_tile, range(0, count, tile)):
            report(stop)
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse(values: Float64Array, wrong: BoolArray, what: str, expected: str) -> None:
    if wrong.any():
        raise InputError(f"{what} is {values[wrong].flat[0]}: expected {expected}")
