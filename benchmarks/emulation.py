"""What does it cost to emulate a faulty array, against a clean matrix product?

Every line is measured in one run, on torch's threads: the emulation, the float32 product of the same shape beside it,
the 8-bit integer product of PyTorch, and the cycle engine. Rounds are interleaved and the medians of the ratios are
printed, so that a machine that changes its pace disturbs all alike. Outputs are compared with the cycle engine's first.

Run: python benchmarks/emulation.py [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from simulator import ArrayConfig, FaultMap, FaultModel, Site, sample_faults, simulate_gemm
from training import lower, run
from training.data.networks import ResNet20

SITES: dict[str, Sequence[Site]] = {
    "no faults": (),
    "weight": (Site.WEIGHT,),
    "weight load": (Site.WEIGHT_LOAD,),
    "bypass": (),
    "activation": (Site.ACTIVATION,),
    "product": (Site.PRODUCT,),
    "multiplier": (Site.MULTIPLIER,),
    "psum": (Site.PSUM,),
    "accumulator": (Site.ACCUMULATOR,),
    "mixed": (Site.WEIGHT, Site.WEIGHT_LOAD, Site.ACTIVATION, Site.PRODUCT, Site.PSUM),
}
BARS = {
    "weight": 1.2,
    "weight load": 1.2,
    "bypass": 1.2,
    "activation": 2.5,
    "product": 1.6,
    "psum": 1.6,
    "mixed": 2.0,
}
"""Most times the float32 product's time with 1 % of PEs faulty, on one core."""


def seconds(function: Callable[[], object]) -> float:
    """One call's time."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def interleaved(functions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Times of each function, seconds [rounds], taken in turns after one call to warm up."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, measured in zip(functions, times, strict=True):
            measured.append(seconds(function))
    return times


def median_ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Median of the ratios of calls that ran side by side."""
    return statistics.median(one / other for one, other in zip(times, baseline, strict=True))


def operands(m: int, k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random int8 X [M, K] and W [K, N]."""
    random = np.random.default_rng(seed)
    x, w = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n)))
    return torch.from_numpy(x), torch.from_numpy(w)


def broken(config: ArrayConfig, name: str, rate: float, seed: int) -> tuple[FaultMap | None, np.ndarray | None]:
    """Faults and bypass of a chip with one of `SITES`."""
    if name == "bypass":
        return None, np.random.default_rng(seed).random((config.rows, config.cols)) < rate
    sites = SITES[name]
    return sample_faults(config, FaultModel(rate, sites=dict.fromkeys(sites, 1.0)), seed) if sites else None, None


def one_size(m: int, side: int, rates: Sequence[float], rounds: int) -> None:
    """Every site and rate on one array that the weights fill."""
    config = ArrayConfig(side, side)
    x, w = operands(m, side, side, 1)
    xf, wf = x.float(), w.float()
    (integer,) = interleaved([lambda: torch._int_mm(x, w)], 3)
    work = m * side * side
    print(f"M={m}, K=N={side}, {side}x{side} array; torch._int_mm: {work / min(integer) / 1e9:.1f} G products/s")
    print(f"{'faults':<13}{'rate':>7}{'G products/s':>14}{'x float32':>11}{'bar':>6}{'lower ms':>10}")
    for rate in rates:
        for name in SITES:
            if not rate and name != "no faults":
                continue
            if rate and name == "no faults":
                continue
            faults, bypass = broken(config, name, rate, 2)
            program = lower(w, config, faults, bypass=bypass)
            check(x[:64], w, config, faults, bypass)
            emulated, product = interleaved([lambda: run(program, x), lambda: xf @ wf], rounds)  # noqa: B023
            lowering = min(interleaved([lambda: lower(w, config, faults, bypass=bypass)], 5)[0])  # noqa: B023
            ratio = median_ratio(emulated, product)
            bar = f"{BARS[name]:.1f}" if rate == 0.01 and name in BARS else ""
            speed = work / statistics.median(emulated) / 1e9
            print(f"{name:<13}{rate:>7.1%}{speed:>14.1f}{ratio:>11.2f}{bar:>6}{lowering * 1e3:>10.2f}")


def check(x: Tensor, w: Tensor, config: ArrayConfig, faults: FaultMap | None, bypass: np.ndarray | None) -> None:
    """Stop if the emulation and the cycle engine disagree."""
    expected = simulate_gemm(x.numpy(), w.numpy(), config, faults, bypass=bypass).outputs
    if not np.array_equal(run(lower(w, config, faults, bypass=bypass), x).numpy(), expected):
        sys.exit("the emulation and the cycle engine disagree")


def against_cycles(gemms: Sequence[tuple[int, int, int, int]], rounds: int) -> None:
    """Products per second of both engines on the same GEMMs."""
    print("\nAgainst the cycle engine, 1 % mixed faults, lowering included, products/s (bar 8x)")
    threads = torch.get_num_threads()
    for m, k, n, side in gemms:
        config = ArrayConfig(side, side)
        x, w = operands(m, k, n, 4)
        faults = sample_faults(config, FaultModel(0.01), 5)
        xn, wn = x.numpy(), w.numpy()
        emulated, stepped = interleaved(
            [
                lambda: run(lower(w, config, faults), x),  # noqa: B023
                lambda: simulate_gemm(xn, wn, config, faults, threads=threads),  # noqa: B023
            ],
            rounds,
        )
        print(f"M={m}, K={k}, N={n} on {side}x{side}: {median_ratio(stepped, emulated):.1f}x")


def layer_shapes(batch: int) -> list[tuple[str, int, int, int]]:
    """M, K and N of each layer of ResNet-20 on 32x32 images."""
    shapes: list[tuple[str, int, int, int]] = []
    network = ResNet20().eval()

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            pixels = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
            shapes.append((name, batch * pixels, weight[0].numel(), len(weight)))

        return hook

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note(name))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return shapes


def resnet20_layers(batch: int, side: int, rates: Sequence[float], rounds: int) -> None:
    """The GEMM of each layer with mixed faults, all layers with each kind of fault, and the lowering of all of them."""
    config = ArrayConfig(side, side)
    shapes = layer_shapes(batch)
    print(
        f"\nResNet-20, batch {batch}, {side}x{side} array, mixed faults: times the float32 product of the layer's shape"
    )
    heads = "".join(f"{rate:>8.1%}" for rate in rates)
    print(f"{'layer':<22}{'M':>8}{'K':>5}{'N':>4}{heads}{'_int_mm':>9}")
    chips = {name: [broken(config, name, rate, 6) for rate in rates] for name in SITES if name != "no faults"}
    totals = {name: [[0.0, 0.0] for _ in rates] for name in chips}
    for layer, m, k, n in shapes:
        x, w = operands(m, k, n, 7)
        xf, wf = x.float(), w.float()
        line = f"{layer:<22}{m:>8}{k:>5}{n:>4}"
        for name, of_rates in chips.items():
            for (faults, bypass), total in zip(of_rates, totals[name], strict=True):
                program = lower(w, config, faults, bypass=bypass)
                emulated, product = interleaved([lambda: run(program, x), lambda: xf @ wf], rounds)  # noqa: B023
                total[0] += statistics.median(emulated)
                total[1] += statistics.median(product)
                if name == "mixed":
                    line += f"{median_ratio(emulated, product):>8.2f}"
        integer, product = interleaved([lambda: torch._int_mm(x, w), lambda: xf @ wf], 1)  # noqa: B023
        print(f"{line}{median_ratio(integer, product):>9.1f}")
    print(f"\n{'all layers, by site':<39}{heads}")
    for name, times in totals.items():
        print(f"{name:<39}" + "".join(f"{emulated / product:>8.2f}" for emulated, product in times))
    weights = [operands(1, k, n, 8)[1] for _, _, k, n in shapes]
    fresh = [sample_faults(config, FaultModel(0.01), 100 + number) for number in range(rounds)]
    first = [seconds(lambda: [lower(w, config, faults) for w in weights]) for faults in fresh]  # noqa: B023
    again = [seconds(lambda: [lower(w, config, faults) for w in weights]) for faults in fresh]  # noqa: B023
    print(
        f"Lowering all {len(shapes)} layers for one chip, 1 %: {statistics.median(first) * 1e3:.1f} ms the first "
        f"time, {statistics.median(again) * 1e3:.1f} ms again with other weights (bar 50 ms)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} thread(s)")
    rates = (0.0, 0.001, 0.01, 0.05)
    if given.quick:
        one_size(256, 64, (0.0, 0.01), 3)
        against_cycles([(256, 64, 64, 64)], 3)
        resnet20_layers(1, 64, (0.01,), 2)
        return
    one_size(4096, 256, rates, 15)
    against_cycles([(4096, 256, 256, 256), (4096, 256, 256, 64), (32768, 144, 32, 64), (32768, 144, 32, 256)], 5)
    for side in (64, 256):
        resnet20_layers(128, side, rates, 5)


if __name__ == "__main__":
    main()
