"""The emulation as an operator of PyTorch: for autograd, `torch.compile` and `torch.export`."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simulator import ArrayConfig, FaultMap
from simulator.errors import InputError
from simulator.faults import FAULT_DTYPE
from simulator.gates.designs import DESIGNS
from simulator.multipliers.multiplier import Multiplier
from training.emulation.gemm import check_values, faulty_gemm
from training.emulation.program import chip_faults, lower

_FIELDS = FAULT_DTYPE.names or ()


class FaultyGemm(nn.Module):
    """Multiply on one chip, differentiably.

    Forward is bit for bit what the chip computes. Backward is straight-through: the gradient of the exact product with
    the effective weights, that is with the weights as the multipliers get them, 0 at bypassed PEs; stuck bits count as
    constants, and weights at bypassed PEs get no gradient.

    Args:
        config: the array.
        faults: what is broken in it; None for nothing.
        bypass: bool [rows, cols], PEs that pass their partial sum on unchanged; None for none.

    Raises:
        InputError: faults of another array, or a bypass of another shape.
    """

    faults: Tensor
    bypass: Tensor

    def __init__(
        self, config: ArrayConfig, faults: FaultMap | None = None, *, bypass: npt.ArrayLike | None = None
    ) -> None:
        super().__init__()
        chip = chip_faults(config, faults, bypass)
        self.config = config
        table = np.stack([chip.faults.table[name].astype(np.int64) for name in _FIELDS], axis=1)
        self.register_buffer("faults", torch.from_numpy(table), persistent=False)
        self.register_buffer("bypass", torch.from_numpy(chip.bypass.copy()), persistent=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Multiply `x @ w` on the chip.

        Args:
            x: activations [M, K], within `config.act_range`: integers, or floats that hold whole numbers.
            w: weights [K, N], within `config.weight_range`: integers, or floats that hold whole numbers.

        Returns:
            int32 [M, N] if `x` and `w` are integers; otherwise float64 [M, N], which holds every such number.

        Raises:
            InputError: numbers that are not whole or out of range, shapes that do not fit, different devices, or a FLIP
                in a cycle that the GEMM does not have.
        """
        outputs: Tensor = torch.ops.efat.faulty_gemm(x, w, self.faults, self.bypass, *_numbers(self.config))
        return outputs


_multipliers: WeakValueDictionary[str, Multiplier] = WeakValueDictionary()
"""Multipliers that are not built in, by digest: operators take numbers and texts only."""


_ARRAY = "int rows, int cols, int weight_bits, int act_bits, bool act_signed, int acc_bits, str multiplier"


def _numbers(config: ArrayConfig) -> tuple[int | str, ...]:
    """An array as operators take it."""
    multiplier = config.multiplier
    if not isinstance(multiplier, str):
        _multipliers[multiplier.digest] = multiplier
        multiplier = multiplier.digest
    sizes = (config.rows, config.cols, config.weight_bits, config.act_bits)
    return (*sizes, config.act_signed, config.acc_bits, multiplier)


def _config(*numbers: Any) -> ArrayConfig:
    *sizes, multiplier = numbers
    known = multiplier if multiplier in DESIGNS else _multipliers.get(multiplier)
    if known is None:
        raise InputError(
            f"multiplier {multiplier} is not known in this process: make a FaultyGemm with it first, or use one of "
            f"{', '.join(DESIGNS)}"
        )
    return ArrayConfig(*(*sizes, known))


def _faulty_gemm(x: Tensor, w: Tensor, faults: Tensor, bypass: Tensor, *numbers: Any) -> Tensor:
    config = _config(*numbers)
    integers = (_whole("x", x, config.act_range), _whole("w", w, config.weight_range))
    outputs = faulty_gemm(*integers, config, _fault_map(config, faults), bypass=bypass.cpu().numpy())
    return outputs.to(torch.float64) if _gives_floats(x, w) else outputs


def _effective_weights(w: Tensor, faults: Tensor, bypass: Tensor, *numbers: Any) -> Tensor:
    config = _config(*numbers)
    weights = _whole("w", w, config.weight_range).cpu().numpy()
    program = lower(weights, config, _fault_map(config, faults), bypass=bypass.cpu().numpy())
    return torch.from_numpy(program.effective_weights.astype(np.float64, order="C")).to(w.device)


def _fake_faulty_gemm(x: Tensor, w: Tensor, *_rest: Any) -> Tensor:
    dtype = torch.float64 if _gives_floats(x, w) else torch.int32
    return x.new_empty((w.shape[1], x.shape[0]), dtype=dtype).t()


def _gives_floats(x: Tensor, w: Tensor) -> bool:
    return x.is_floating_point() or w.is_floating_point()


def _whole(name: str, values: Tensor, limits: tuple[int, int]) -> Tensor:
    """Numbers as integers, checked."""
    if not values.is_floating_point():
        return values
    if values.numel():
        least, greatest = (float(value) for value in torch.aminmax(values.detach()))
        if not (least >= limits[0] and greatest <= limits[1]):
            outside = greatest if least >= limits[0] else least
            raise InputError(f"{name} holds {outside:g}: expected {limits[0]}..{limits[1]} for this array's widths")
    whole = values.detach().to(torch.int16)
    broken = whole != values.detach()
    if bool(broken.any()):
        raise InputError(
            f"{name} holds {float(values.detach()[broken][0]):g}: expected whole numbers; quantise it first"
        )
    check_values(name, whole, limits)
    return whole


def _fault_map(config: ArrayConfig, faults: Tensor) -> FaultMap:
    if faults.dtype != torch.int64 or faults.ndim != 2 or faults.shape[1] != len(_FIELDS):
        raise InputError(
            f"faults is {faults.dtype} {list(faults.shape)}: expected int64 [faults, {len(_FIELDS)}], "
            f"a row of {', '.join(_FIELDS)} for each"
        )
    return _remembered_fault_map(config, faults.cpu().numpy().tobytes())


@lru_cache(maxsize=8)
def _remembered_fault_map(config: ArrayConfig, table: bytes) -> FaultMap:
    rows = np.frombuffer(table, np.int64).reshape(-1, len(_FIELDS))
    return FaultMap.from_arrays(config, **{name: rows[:, place] for place, name in enumerate(_FIELDS)})


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, faults, bypass, *numbers = inputs
    ctx.save_for_backward(x, w, faults, bypass)
    ctx.numbers = numbers


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, w, faults, bypass = ctx.saved_tensors
    of_x = of_w = None
    if ctx.needs_input_grad[0]:
        effective = torch.ops.efat.effective_weights(w, faults, bypass, *ctx.numbers)
        of_x = (gradient @ effective.t()).to(x.dtype)
    if ctx.needs_input_grad[1]:
        row = torch.arange(w.shape[0], device=w.device) % bypass.shape[0]
        column = torch.arange(w.shape[1], device=w.device) % bypass.shape[1]
        kept = ~bypass.to(w.device)[row][:, column]
        of_w = ((x.to(torch.float64).t() @ gradient) * kept).to(w.dtype)
    return (of_x, of_w, None, None, *[None] * len(ctx.numbers))


_CHIP = f"Tensor w, Tensor faults, Tensor bypass, {_ARRAY}"
_operator: Any = partial(torch.library.custom_op, mutates_args=())
_faulty_gemm_operator = _operator("efat::faulty_gemm", _faulty_gemm, schema=f"(Tensor x, {_CHIP}) -> Tensor")
_faulty_gemm_operator.register_fake(_fake_faulty_gemm)
_faulty_gemm_operator.register_autograd(_gradients, setup_context=_remember)
_effective_weights_operator = _operator("efat::effective_weights", _effective_weights, schema=f"({_CHIP}) -> Tensor")
_effective_weights_operator.register_fake(lambda w, *_: w.new_empty(w.shape, dtype=torch.float64))
