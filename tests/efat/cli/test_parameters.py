"""Fractions on the command line: in percent, too, and doubted where a percentage is likely meant."""

from __future__ import annotations

import click
import pytest

from efat.cli.parameters import FractionText, NumberList, RateRange

DROP = FractionText("chips may lose {} of the images")
RATES = NumberList(float, "0.01,0.1")


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (FractionText(), "0.57", 0.57),
        (FractionText(), " 57 % ", 0.57),
        (FractionText(), "0.1%", 0.001),
        (FractionText(), "1", 1.0),
        (DROP, "1%", 0.01),
        (DROP, "0.4999", 0.4999),
        (DROP, "50%", 0.5),
        (DROP, "100%", 1.0),
        (DROP, "0", 0.0),
        (RateRange(), "1%", (0.01, 0.01)),
        (RateRange(), "0.1%:0.05", (0.001, 0.05)),
        (RateRange(), "0:1", (0.0, 1.0)),
        (RateRange(), "100%", (1.0, 1.0)),
        (RATES, "1%,0.5%,0.1", (0.005, 0.01, 0.1)),
        (RATES, "50%,100%", (0.5, 1.0)),
        (NumberList(int, "0,5"), "5,1", (1, 5)),
    ],
)
def test_percentages_are_the_decimal_fraction(kind: click.ParamType, text: str, expected: object) -> None:
    assert kind.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (DROP, "1", "'1' means that chips may lose 100% of the images: for 1 percent give 0.01 or 1%, or 100%"),
        (DROP, "97", "expected a fraction, 0 to 1, or a percentage such as 1%; for 97 percent give 0.97 or 97%"),
        (FractionText(), "-0.1", "'-0.1': expected a fraction, 0 to 1, or a percentage such as 1%"),
        (FractionText(), "%", "'%': expected a fraction"),
        (FractionText(), "nan%", "'nan%': expected a fraction"),
        (FractionText(), "1%%", "'1%%': expected a fraction"),
        (RateRange(), "1", "'1' means that all PEs are faulty: for 1 percent give 0.01 or 1%, or 100%"),
        (RATES, "0.5,1", "'0.5,1': 1 means all of them: for 1 percent give 0.01 or 1%, or 100%"),
        (RATES, "-1%", "'-1%': expected numbers of 0 or more"),
        (NumberList(int, "0,5"), "5%", "'5%': expected whole numbers"),
    ],
)
def test_what_is_likely_another_fraction_is_refused(kind: click.ParamType, text: str, message: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert message in caught.value.message
