"""Merge groups of chips greedily, best pair first, with few of the unions of their masks ever counted.

A mask is a row of 64-bit words, in runs whose bits all stand for the same number of weights. What a union of two
removes is counted once for every pair of chips. What a merged group G of A and B removes together with C is first only
bounded from below, by inclusion and exclusion with an upper bound of the overlap, |G and C| <= |A and C| + |B and C|,
which for masks that overlap little is nearly exact; it is counted when the pair comes to be the best.

A pair belongs to the younger of its groups, so that a new group changes nothing for the others. Of each group the best
few partners are kept, and a tournament has the best pair of all on top. Bounds rank a pair too high, never too low, so
a pair that has been counted and is still on top is the best there is.

Indices are not checked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.dtypes import Float64Array, Int64Array, UInt64Array
from simulator.kernels import kernels

GONE = 1 << 62
"""The age of a group that has been merged into another."""

_kernel = kernels()


class Masks(NamedTuple):
    """Bypass masks, of which PEs without weights are left out.

    Attributes:
        words: uint64 [groups, words].
        bounds: int64 [runs + 1], where runs of words begin, and the last one ends.
        factors: int64 [runs], the weights that a bit of each run stands for.
    """

    words: UInt64Array
    bounds: Int64Array
    factors: Int64Array


class Levels(NamedTuple):
    """How much retraining it takes by how many weights are removed; above the last level no amount is enough.

    Attributes:
        limits: int64 [levels] ascending, the most weights that may be removed.
        amounts: float64 [levels] strictly ascending, finite.
    """

    limits: Int64Array
    amounts: Float64Array


class Tournament(NamedTuple):
    """The best pair of each group, and of all. What is not known is taken for better than it can be.

    Attributes:
        reward: float64 [groups], what merging the pair saves; 0 if a group has none, infinite if none was looked for.
        union: int64 [groups], what both remove.
        chips: int64 [groups, 2], the smallest chip of either, the smaller one first.
        tree: int64 [2 * power of two], the groups at its leaves and winners of rounds above them; -1 for nobody.
    """

    reward: Float64Array
    union: Int64Array
    chips: Int64Array
    tree: Int64Array


class Groups(NamedTuple):
    """Groups of chips that are being merged; a merged group has the place of one of its parts.

    Attributes:
        masks: the union of each group's masks.
        levels: what they take.
        union: int64 [groups, groups], weights that two groups remove together, or a lower bound of them; on the
            diagonal what each removes.
        amount: float64 [groups], what each takes: finite and above 0.
        first: int64 [groups], the smallest chip of each.
        birth: int64 [groups], numbers in the order of age, below 0 at the beginning; `GONE` for those that are no more.
        alive: int64 [groups], the groups there are; only the first `counts[0]` count.
        place: int64 [groups], where in `alive` each is.
        partners: int64 [groups, kept], the best older partners of each, best first.
        begin: int64 [groups], the first of them that is not used up.
        end: int64 [groups], one past the last.
        best: the first partners in competition.
        merges: int64 [groups, 2], what was merged: the place that was kept and the one that was given up.
        counts: int64 [2], the number of groups alive and of merges.
    """

    masks: Masks
    levels: Levels
    union: Int64Array
    amount: Float64Array
    first: Int64Array
    birth: Int64Array
    alive: Int64Array
    place: Int64Array
    partners: Int64Array
    begin: Int64Array
    end: Int64Array
    best: Tournament
    merges: Int64Array
    counts: Int64Array


@_kernel
def _ones(word: np.uint64) -> np.uint64:
    """The number of bits set; compilers know these lines and make one instruction of them."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    count: np.uint64 = (word * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return count


@_kernel
def weights_removed(masks: Masks, first: int, second: int) -> int:
    """Weights that the union of two masks removes."""
    removed = 0
    for run in range(len(masks.factors)):
        left = masks.words[first, masks.bounds[run] : masks.bounds[run + 1]]
        right = masks.words[second, masks.bounds[run] : masks.bounds[run + 1]]
        ones = np.uint64(0)
        for word in range(len(left)):
            ones += _ones(left[word] | right[word])
        removed += np.int64(ones) * masks.factors[run]
    return removed


@_kernel
def compare(masks: Masks, first: int, stop: int, union: Int64Array) -> None:
    """Count what masks `first` to `stop` remove alone, with each other and with all later ones, in both orders."""
    for other in range(first, len(masks.words)):
        for mask in range(first, min(stop, other + 1)):
            union[mask, other] = union[other, mask] = weights_removed(masks, mask, other)


@_kernel
def merge(groups: Groups, most_steps: int) -> bool:
    """Merge best pairs; a step looks at one pair. Returns whether no pair is left that is worth it."""
    for _ in range(most_steps):
        group = groups.best.tree[1]
        if group < 0:
            return True
        begin = groups.begin[group]
        if begin < groups.end[group]:
            partner = groups.partners[group, begin]
            if groups.birth[partner] < groups.birth[group]:
                removed = weights_removed(groups.masks, group, partner)
                if removed > groups.union[group, partner]:
                    groups.union[group, partner] = groups.union[partner, group] = removed
                    _move_back(groups, group)
                else:
                    _merge(groups, group, partner)
        _renew(groups, group)
    return False


@_kernel
def _level(limits: Int64Array, removed: int) -> int:
    """The first level on which so much may be removed; one past the last if there is none."""
    low, high = 0, len(limits)
    while low < high:
        middle = (low + high) // 2
        if limits[middle] < removed:
            low = middle + 1
        else:
            high = middle
    return low


@_kernel
def _reward(levels: Levels, apart: float, removed: int) -> float:
    """What is saved by merging two groups that take so much apart and remove so much together; 0 if it is too much."""
    level = _level(levels.limits, removed)
    return apart - levels.amounts[level] if level < len(levels.limits) else 0.0


@_kernel
def _is_better(union: Int64Array, first: Int64Array, one: int, other: int, reward: float, other_reward: float) -> bool:
    """Whether one partner comes before another of a group whose row of unions is given."""
    if reward != other_reward:
        return reward > other_reward
    if union[one] != union[other]:
        return bool(union[one] < union[other])
    return bool(first[one] < first[other])


@_kernel
def _find_partners(groups: Groups, group: int) -> None:
    """Look for the best partners of a group among all that are older."""
    partners, union, first = groups.partners[group], groups.union[group], groups.first
    most_kept = len(partners)
    rewards = np.empty(most_kept)
    kept = 0
    for place in range(groups.counts[0]):
        other = groups.alive[place]
        if groups.birth[other] >= groups.birth[group]:
            continue
        apart = groups.amount[group] + groups.amount[other]
        if kept == most_kept:
            # No union takes less than either part. It is rounded as rewards are.
            most = apart - max(groups.amount[group], groups.amount[other])
            if not _is_better(union, first, other, partners[most_kept - 1], most, rewards[most_kept - 1]):
                continue
        reward = _reward(groups.levels, apart, union[other])
        rank = kept
        while rank > 0 and _is_better(union, first, other, partners[rank - 1], reward, rewards[rank - 1]):
            rank -= 1
        if reward > 0 and rank < most_kept:
            kept = min(kept + 1, most_kept)
            for behind in range(kept - 1, rank, -1):
                rewards[behind] = rewards[behind - 1]
                partners[behind] = partners[behind - 1]
            rewards[rank] = reward
            partners[rank] = other
    groups.begin[group] = 0
    groups.end[group] = kept


@_kernel
def _move_back(groups: Groups, group: int) -> None:
    """Put the first partner where it belongs, now that it is known how much both remove."""
    partners, union, amount = groups.partners[group], groups.union[group], groups.amount
    place, last = groups.begin[group], groups.end[group] - 1
    moving = partners[place]
    reward = _reward(groups.levels, amount[group] + amount[moving], union[moving])
    while place < last:
        other = partners[place + 1]
        # What is kept of partners that are gone says nothing about their order.
        if groups.birth[other] < groups.birth[group]:
            other_reward = _reward(groups.levels, amount[group] + amount[other], union[other])
            if _is_better(union, groups.first, moving, other, reward, other_reward):
                partners[place] = moving
                return
        partners[place] = other
        place += 1
    # Partners that are not kept may be better.
    groups.end[group] = last


@_kernel
def _merge(groups: Groups, group: int, partner: int) -> None:
    """Merge two groups, at the place of the first, whose partners are not known then."""
    union = groups.union
    removed, of_both = union[group, partner], union[group, group] + union[partner, partner]
    for word in range(groups.masks.words.shape[1]):
        groups.masks.words[group, word] |= groups.masks.words[partner, word]
    counts = groups.counts
    counts[0] -= 1
    moved, place = groups.alive[counts[0]], groups.place[partner]
    groups.alive[place] = moved
    groups.place[moved] = place
    for place in range(counts[0]):
        other = groups.alive[place]
        if other != group:
            # As if the parts of it that overlap with one and with the other did not overlap.
            least = removed - of_both - union[other, other] + union[group, other] + union[partner, other]
            least = max(max(least, removed), max(union[group, other], union[partner, other]))
            union[group, other] = union[other, group] = least
    union[group, group] = removed
    groups.amount[group] = groups.levels.amounts[_level(groups.levels.limits, removed)]
    groups.first[group] = min(groups.first[group], groups.first[partner])
    groups.birth[group] = counts[1]
    groups.end[group] = groups.begin[group]
    groups.birth[partner] = GONE
    groups.best.reward[partner] = 0.0
    _climb(groups.best, partner)
    groups.merges[counts[1], 0] = group
    groups.merges[counts[1], 1] = partner
    counts[1] += 1


@_kernel
def _renew(groups: Groups, group: int) -> None:
    """Go on to the best partner that is still there, and have the pair compete with those of other groups."""
    begin, end = groups.begin[group], groups.end[group]
    while begin < end and groups.birth[groups.partners[group, begin]] >= groups.birth[group]:
        begin += 1
    groups.begin[group] = begin
    if begin == end:
        _find_partners(groups, group)
    begin, best = groups.begin[group], groups.best
    best.reward[group] = 0.0
    if begin < groups.end[group]:
        partner = groups.partners[group, begin]
        best.union[group] = groups.union[group, partner]
        apart = groups.amount[group] + groups.amount[partner]
        best.reward[group] = _reward(groups.levels, apart, best.union[group])
        best.chips[group, 0] = min(groups.first[group], groups.first[partner])
        best.chips[group, 1] = max(groups.first[group], groups.first[partner])
    _climb(best, group)


@_kernel
def _climb(best: Tournament, group: int) -> None:
    """Play the rounds of the tournament again that a group takes part in."""
    tree = best.tree
    node = len(tree) // 2 + group
    tree[node] = group if best.reward[group] > 0 else -1
    while node > 1:
        node //= 2
        left, right = tree[2 * node], tree[2 * node + 1]
        tree[node] = left if right < 0 or (left >= 0 and _wins(best, left, right)) else right


@_kernel
def _wins(best: Tournament, one: int, other: int) -> bool:
    """Whether the best pair of one group comes before that of another."""
    if best.reward[one] != best.reward[other]:
        return bool(best.reward[one] > best.reward[other])
    if best.union[one] != best.union[other]:
        return bool(best.union[one] < best.union[other])
    if best.chips[one, 0] != best.chips[other, 0]:
        return bool(best.chips[one, 0] < best.chips[other, 0])
    return bool(best.chips[one, 1] < best.chips[other, 1])
