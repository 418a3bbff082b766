"""Give items to places of several seats each, at least cost in total: exactly, and fast where places are few.

Shortest augmenting paths for the semi-assignment problem (Kennington & Wang 1992, Operations Research 40:178-187). An
assignment problem with a column for each seat (`scipy.optimize.linear_sum_assignment`) has the same optimum, but visits
every seat of a place where one node for the place does: with 4608 items on 256 places of 18 seats and costs of chips
with 1 % to 30 % of their PEs bypassed it takes 22 to 78 s, and this 0.3 to 0.6 s.
"""

from __future__ import annotations

import numpy as np

from simulator.dtypes import Float64Array, Int64Array
from simulator.kernels import kernels

_kernel = kernels()


@_kernel
def product(left: Float64Array, right: Float64Array) -> Float64Array:
    """Multiply matrices [a, b] and [b, c] of float64, summed in order of b wherever it runs.

    `@` sums in other orders on other machines, and for hundreds of groups of few weights each its threads are slow.
    """
    total = np.zeros((len(left), right.shape[1]))
    for row in range(len(left)):
        for inner in range(len(right)):
            for column in range(right.shape[1]):
                total[row, column] += left[row, inner] * right[inner, column]
    return total


@_kernel
def cheapest_places(cost: Float64Array, seats: int, current: Int64Array) -> Int64Array:
    """Find the assignment of least cost. Indices are not checked.

    Exact but for the rounding of float64: with integers below 2^53 in all sums not even that. Items that already sit
    where they are cheapest keep their places unless others gain from their leaving; no choice depends on chance.

    Args:
        cost: finite [items, places].
        seats: how many items a place takes; `places * seats` is at least `items`.
        current: int64 [items], the places taken now, none by more items than it has seats.

    Returns:
        int64 [items], their places.
    """
    items, places = cost.shape
    chosen = np.full(items, -1)
    members = np.empty((places, seats), np.int64)
    count = np.zeros(places, np.int64)
    # The cheapest move of a member of one place to another: what it costs more there, and whose it is. Both are unset
    # as long as a place is empty, and needed only once it is full.
    move_cost = np.empty((places, places))
    mover = np.empty((places, places), np.int64)
    # What a seat is worth, as a negative number; 0 until a place is full. Every item sits where cost - price is least.
    price = np.zeros(places)
    for item in range(items):
        if cost[item, current[item]] == cost[item].min():
            chosen[item] = current[item]
            _enter(cost, members, count, move_cost, mover, item, current[item])

    distance = np.empty(places)
    previous = np.empty(places, np.int64)
    settled = np.empty(places, np.bool_)
    for item in range(items):
        if chosen[item] >= 0:
            continue
        # Dijkstra's algorithm from the item to the nearest place with a free seat: distances are reduced costs.
        for place in range(places):
            distance[place] = cost[item, place] - price[place]
            previous[place] = -1
            settled[place] = False
        while True:
            nearest = -1
            for place in range(places):
                if not settled[place] and (nearest < 0 or distance[place] < distance[nearest]):
                    nearest = place
            if count[nearest] < seats:
                break
            settled[nearest] = True
            base = distance[nearest] + price[nearest]
            for place in range(places):
                through = base + move_cost[nearest, place] - price[place]
                if not settled[place] and through < distance[place]:
                    distance[place] = through
                    previous[place] = nearest
        for place in range(places):
            if settled[place]:
                price[place] += distance[place] - distance[nearest]
        # All along the path somebody moves on, from its end, so that nobody enters a place that is full.
        place = nearest
        while previous[place] >= 0:
            before = previous[place]
            moving = mover[before, place]
            _leave(cost, members, count, move_cost, mover, moving, before)
            _enter(cost, members, count, move_cost, mover, moving, place)
            chosen[moving] = place
            place = before
        _enter(cost, members, count, move_cost, mover, item, place)
        chosen[item] = place
    return chosen


@_kernel
def _enter(
    cost: Float64Array,
    members: Int64Array,
    count: Int64Array,
    move_cost: Float64Array,
    mover: Int64Array,
    item: int,
    place: int,
) -> None:
    """Give an item a free seat of a place."""
    for other in range(cost.shape[1]):
        more = cost[item, other] - cost[item, place]
        if count[place] == 0 or more < move_cost[place, other]:
            move_cost[place, other] = more
            mover[place, other] = item
    members[place, count[place]] = item
    count[place] += 1


@_kernel
def _leave(
    cost: Float64Array,
    members: Int64Array,
    count: Int64Array,
    move_cost: Float64Array,
    mover: Int64Array,
    item: int,
    place: int,
) -> None:
    """Free the seat of an item."""
    count[place] -= 1
    last = count[place]
    for seat in range(last):
        if members[place, seat] == item:
            members[place, seat] = members[place, last]
    if last == 0:
        return
    for other in range(cost.shape[1]):
        if mover[place, other] != item:
            continue
        move_cost[place, other] = np.inf
        for seat in range(last):
            member = members[place, seat]
            more = cost[member, other] - cost[member, place]
            if more < move_cost[place, other]:
                move_cost[place, other] = more
                mover[place, other] = member
