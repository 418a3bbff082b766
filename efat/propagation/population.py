"""All faults that can happen to an array while it runs a network, numbered but never listed, and samples of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from efat.propagation.request import Stratum
from simulator import ArrayConfig, Kind, Site, gemm_timing
from simulator.dtypes import BoolArray, Int64Array
from simulator.errors import InputError
from simulator.faults import PERMANENT

POPULATION_DTYPE = np.dtype(
    [
        ("row", "<u2"),
        ("col", "<u2"),
        ("site", "u1"),
        ("bit", "<u2"),
        ("kind", "u1"),
        ("layer", "<i2"),
        ("group", "<i2"),
        ("cycle", "<i8"),
        ("image", "<i4"),
    ]
)
"""A fault. `layer`, `group`, `cycle` and `image` say when a FLIP happens: in a clock cycle, counted from 0 in serial
timing, of the GEMM of one group of one layer, for one image by itself. They are -1 for permanent faults."""

_LARGEST_SIZE = (1 << 63) - 1
_SHUFFLED = 1 << 20
"""Up to so many faults are shuffled; of more, some are drawn again and again until enough of them are different."""
_DRAWN_FIRST = 1 << 14


@dataclass(frozen=True)
class LayerShape:
    """A quantised layer, by the GEMMs that one image makes.

    Args:
        name: in the network.
        groups: GEMMs, 1 or more.
        m: rows of X.
        k: length of a dot product.
        n: output channels of each group.
    """

    name: str
    groups: int
    m: int
    k: int
    n: int


@dataclass(frozen=True, eq=False)
class LayerUse:
    """What a layer makes of the array, for all images.

    Args:
        name: of the layer.
        m: rows of X for one image.
        weights: int8 [groups, N, K].
        seen: bool [groups, K, 2**act_bits], the bit patterns of activations that occur in each column of X, in any row
            of any image; zeros of padding are activations, too.
    """

    name: str
    m: int
    weights: npt.NDArray[np.int8]
    seen: BoolArray

    @property
    def shape(self) -> LayerShape:
        """The sizes of its GEMMs."""
        groups, n, k = self.weights.shape
        return LayerShape(self.name, groups, self.m, k, n)


class Population:
    """All faults of some strata, each with a number: those of the first stratum, then those of the second, and so on.

    A permanent fault is of one PE (an ACCUMULATOR fault of one column). A FLIP is also of one image and one clock cycle
    of one GEMM of its inference in serial timing; cycles in which nothing happens count like others.

    Args:
        config: the array.
        layers: the layers in the order in which they run, one or more.
        strata: different ones, in the order of their faults, each of a bit that its net has; one or more.
        images: how many inferences FLIPs can happen in, 1 or more.

    Raises:
        InputError: more faults than 64 bits count.
    """

    def __init__(
        self, config: ArrayConfig, layers: Sequence[LayerShape], strata: Sequence[Stratum], images: int
    ) -> None:
        self.config = config
        self.layers = tuple(layers)
        self.strata = tuple((Site(site), int(bit), Kind(kind)) for site, bit, kind in strata)
        self.images = images
        self._serial = np.array(
            [gemm_timing(config, layer.m, layer.k, layer.n).serial for layer in self.layers], np.int64
        )
        cycles = [layer.groups * int(serial) for layer, serial in zip(self.layers, self._serial, strict=True)]
        self._first_cycle = np.array([0, *accumulate(cycles)], np.int64)
        self.sizes = [self._size_of(site, kind) for site, _, kind in self.strata]
        """Faults of each stratum."""
        self.size = sum(self.sizes)
        """Faults of all strata."""
        if self.size > _LARGEST_SIZE:
            raise InputError(
                f"there are {self.size} faults: expected at most {_LARGEST_SIZE}; choose fewer images, sites or bits"
            )
        self._starts = np.array([0, *accumulate(self.sizes)], np.int64)
        codes = stratum_codes(*zip(*self.strata, strict=True))
        self._order = np.argsort(codes)
        self._codes = codes[self._order]

    @property
    def cycles(self) -> int:
        """Clock cycles of all GEMMs of one image."""
        return int(self._first_cycle[-1])

    def stratum_of(self, indices: npt.NDArray[np.integer]) -> Int64Array:
        """The place of the stratum of each fault by its number, int64 [faults].

        Raises:
            ValueError: a number that the population does not have.
        """
        wanted = np.asarray(indices, np.int64)
        outside = (wanted < 0) | (wanted >= self.size)
        if outside.any():
            raise ValueError(f"fault {wanted[outside][0]} of the population: expected 0..{self.size - 1}")
        return (np.searchsorted(self._starts, wanted, side="right") - 1).astype(np.int64)

    def faults(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.void]:
        """The faults with some numbers, in any order: `POPULATION_DTYPE` [faults].

        Raises:
            ValueError: a number that the population does not have.
        """
        stratum = self.stratum_of(indices)
        site, bit, kind = (np.array(values, np.int64)[stratum] for values in zip(*self.strata, strict=True))
        time, position = np.divmod(np.asarray(indices, np.int64) - self._starts[stratum], self._positions(site))
        image, cycle = np.divmod(time, self.cycles)
        layer = np.searchsorted(self._first_cycle, cycle, side="right") - 1
        group, cycle = np.divmod(cycle - self._first_cycle[layer], self._serial[layer])
        table = np.empty(len(stratum), POPULATION_DTYPE)
        table["row"], table["col"] = np.divmod(position, self.config.cols)
        table["site"], table["bit"], table["kind"] = site, bit, kind
        when = {"layer": layer, "group": group, "cycle": cycle, "image": image}
        for name, values in when.items():
            table[name] = np.where(kind == Kind.FLIP, values, PERMANENT)
        return table

    def indices(self, table: npt.NDArray[np.void]) -> Int64Array:
        """The numbers of faults as `faults` gives them, int64 [faults]; -1 for those of other strata."""
        wide = {name: table[name].astype(np.int64) for name in POPULATION_DTYPE.names or ()}
        codes = stratum_codes(wide["site"], wide["bit"], wide["kind"])
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        stratum = self._order[place]
        cycle = self._first_cycle[wide["layer"]] + wide["group"] * self._serial[wide["layer"]] + wide["cycle"]
        time = np.where(wide["kind"] == Kind.FLIP, wide["image"] * self.cycles + cycle, 0)
        position = wide["row"] * self.config.cols + wide["col"]
        index: Int64Array = self._starts[stratum] + time * self._positions(wide["site"]) + position
        return np.where(self._codes[place] == codes, index, -1)

    def sample(self, count: int | Sequence[int] | npt.NDArray[np.integer], seed: int) -> Int64Array:
        """Draw faults without replacement, each as likely as any other.

        The faults of a smaller sample with the same seed are among those of a larger one.

        Args:
            count: how many, or how many of each stratum; at most as many as there are.
            seed: of chance, from 0.

        Returns:
            int64 [faults], their numbers, ascending.
        """
        if isinstance(count, int | np.integer):
            drawn = [_draw(self.size, int(count), np.random.SeedSequence(seed))]
        else:
            drawn = []
            for place, (stratum, of_stratum) in enumerate(zip(self.strata, np.asarray(count).tolist(), strict=True)):
                site, bit, kind = stratum
                # Of its own, whichever strata there are besides.
                key = np.random.SeedSequence(seed, spawn_key=(int(site), bit, int(kind)))
                drawn.append(_draw(self.sizes[place], of_stratum, key) + self._starts[place])
        return np.sort(np.concatenate(drawn))

    def _size_of(self, site: Site, kind: Kind) -> int:
        positions = int(self._positions(np.array(site)))
        return positions * self.cycles * self.images if kind is Kind.FLIP else positions

    def _positions(self, site: npt.NDArray[np.integer]) -> Int64Array:
        """Nets of a site."""
        return np.where(site == Site.ACCUMULATOR, self.config.cols, self.config.pe_count)


def stratum_codes(site: npt.ArrayLike, bit: npt.ArrayLike, kind: npt.ArrayLike) -> Int64Array:
    """Numbers for strata that are in the order of sites, then bits, then kinds; any integers of one shape."""
    return (np.asarray(site, np.int64) << 24) | (np.asarray(bit, np.int64) << 8) | np.asarray(kind, np.int64)


def _draw(size: int, count: int, seed: np.random.SeedSequence) -> Int64Array:
    """Different numbers below `size`, int64 [count]; fewer are the first of more."""
    if count == size:
        return np.arange(size, dtype=np.int64)
    random = np.random.default_rng(seed)
    if size <= _SHUFFLED:
        return random.permutation(size)[:count]
    drawn = np.empty(0, np.int64)
    # Blocks are as long as they are whatever is asked for, so that the numbers are the same.
    block = _DRAWN_FIRST
    while len(drawn) < count:
        drawn = np.concatenate([drawn, random.integers(size, size=block)])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        block = max(block, len(drawn))
    return drawn[:count]
