"""What results print as, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from efat.display import Shown, Table, Verdict


class Result(Shown):
    """Two tables and a line between them."""

    def parts(self) -> Iterator[Table | str]:
        """Both of them."""
        yield Table(
            "few", ["name", "outputs\nchanged", "double-\nbuffered"], [("<a>", 1200, "1 (2.0%)"), ("b", None, 0.5)]
        )
        yield Verdict("first\nsecond")
        yield Table("many", ["name"], [(str(row),) for row in range(5)], notes=["a note"], most=2)


def test_parts_are_printed_in_turn() -> None:
    assert str(Result()).splitlines() == [
        "few",
        "name  outputs changed  double-buffered",
        "<a>             1,200         1 (2.0%)",
        "b                   -              0.5",
        "",
        "first",
        "second",
        "many",
        "name",
        "0",
        "1",
        "and 3 more",
        "a note",
    ]


def test_a_notebook_shows_the_same() -> None:
    shown = Result()._repr_html_()
    assert shown.count("<tr>") == 3 + 3
    assert "<td>&lt;a&gt;</td><td style='text-align: right'>1,200</td>" in shown
    assert "</table><p><b>first<br>second</b></p><table>" in shown
    assert shown.endswith("<p>and 3 more</p><p>a note</p>")
