"""Which signs a multiplier's operands have: few files say it, but their products show it.

Products are compared with the exact ones of all four combinations of signs, over all pairs of operands. Signs are
*far nearer* than others if they make the mean absolute error several times smaller. Products are given as
[2**weight_bits, 2**act_bits] numbers or bit patterns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.dtypes import Int64Array
from simulator.errors import InputError

FAR_SMALLER = 4
"""A mean absolute error is far smaller than another if it is less than this part of it."""


class Signs(NamedTuple):
    """Whether a multiplier's operands are two's complement."""

    weight: bool
    act: bool

    def __str__(self) -> str:
        weight, act = ("signed" if signed else "unsigned" for signed in self)
        return f"{weight} weights by {act} activations"


ALL_SIGNS = (Signs(True, True), Signs(True, False), Signs(False, True), Signs(False, False))


class SignError(InputError):
    """Products that cannot be those of the signs stated; one line says why."""


class OtherSignsError(SignError):
    """Products that are far nearer to those of other signs, `nearest`."""

    def __init__(self, message: str, nearest: Signs) -> None:
        super().__init__(message)
        self.nearest = nearest


def operand_values(size: int, *, signed: bool) -> Int64Array:
    """The numbers of all bit patterns, int64 [size], in the order of the patterns."""
    patterns = np.arange(size, dtype=np.int64)
    return np.where(signed & (patterns >= size // 2), patterns - size, patterns)


def signed_products(shape: tuple[int, ...], signs: Signs) -> Int64Array:
    """The exact products of all pairs of operands; `shape` is (2**weight_bits, 2**act_bits)."""
    weights, acts = (operand_values(size, signed=signed) for size, signed in zip(shape, signs, strict=True))
    products: Int64Array = np.multiply.outer(weights, acts)
    return products


def product_values(given: npt.NDArray[np.integer], signs: Signs) -> Int64Array:
    """Products as numbers, which are two's complement if an operand is.

    Raises:
        SignError: a product that `weight_bits + act_bits` bits do not hold.
    """
    numbers: Int64Array = given.astype(np.int64)
    half = given.size // 2
    least, most = int(given.min()), int(given.max())
    if any(signs):
        if least < -half or most >= 2 * half or (least < 0 and most >= half):
            raise SignError(
                f"products are {least}..{most}: expected {-half}..{half - 1} for signed operands, "
                f"or their bit patterns 0..{2 * half - 1}"
            )
        return np.where(numbers >= half, numbers - 2 * half, numbers)
    if least < 0 or most >= 2 * half:
        raise SignError(f"products are {least}..{most}: expected 0..{2 * half - 1} for unsigned operands")
    return numbers


def sign_errors(given: npt.NDArray[np.integer]) -> dict[Signs, float]:
    """The mean absolute error for all signs that the products can have."""
    errors = {}
    for signs in ALL_SIGNS:
        try:
            numbers = product_values(given, signs)
        except SignError:
            continue
        errors[signs] = float(np.abs(numbers - signed_products(numbers.shape, signs)).mean())
    return errors


def check_signs(given: npt.NDArray[np.integer], stated: Signs) -> None:
    """Refuse signs if the products are far nearer to the exact ones of others.

    Raises:
        OtherSignsError: so it is.
        SignError: the products do not fit the signs stated at all.
    """
    product_values(given, stated)
    errors = sign_errors(given)
    nearest = min(errors, key=lambda signs: errors[signs])
    if errors[nearest] * FAR_SMALLER >= errors[stated]:
        return
    if errors[nearest] == 0:
        raise OtherSignsError(f"it multiplies {nearest} exactly, not {stated}", nearest)
    raise OtherSignsError(
        f"for {stated}, as stated, the mean absolute error is {_shown(errors[stated])}, but for {nearest} "
        f"{_shown(errors[nearest])}",
        nearest,
    )


def error_note(given: npt.NDArray[np.integer], stated: Signs) -> str:
    """How near products are to the exact ones, and what makes their signs doubtful."""
    error = _bit_pattern_errors(given)[stated]
    if error == 0:
        return "exact"
    doubt = sign_doubt(given, stated)
    return f"mean absolute error {_shown(error)}{'; ' + doubt if doubt else ''}"


def sign_doubt(given: npt.NDArray[np.integer], stated: Signs) -> str:
    """What makes it doubtful that a multiplier is for these signs, or one at all; empty if nothing does."""
    errors = _bit_pattern_errors(given)
    error = errors.pop(stated)
    other = min(errors, key=lambda signs: errors[signs])
    doubts = []
    if error and errors[other] < FAR_SMALLER * error:
        far = errors[other] * FAR_SMALLER < error
        shown = "it is likely made for those" if far else "the products do not show the signs"
        doubts.append(f"for {other} it would be {_shown(errors[other])}, so that {shown}")
    if error >= float(np.abs(signed_products(given.shape, stated)).mean()):
        doubts.append("products that are always 0 would be no worse")
    return "; ".join(doubts)


def _shown(error: float) -> str:
    return f"{error:,.0f}" if error >= 1000 else f"{error:.4g}"


def _bit_pattern_errors(given: npt.NDArray[np.integer]) -> dict[Signs, float]:
    """For all signs: of numbers that are taken for signed ones the bit patterns may be meant unsigned."""
    return sign_errors(given.astype(np.int64) & (given.size - 1))
