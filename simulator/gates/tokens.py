"""Words of Verilog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from simulator.gates.netlist import NetlistError

_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|`(?:timescale|default_nettype|celldefine|endcelldefine|resetall)\b[^\n]*)"
    r"|(?P<comment>/\*|\(\*(?!\s*\)))"
    r"|(?P<escaped>\\\S+)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_$]*)"
    r"|(?P<number>(?:[0-9][0-9_]*\s*)?'\s*[sS]?[bodhBODH]\s*[0-9a-fA-FxXzZ?_]+|[0-9][0-9_]*)"
    r"|(?P<sign>~\^|\^~|[()\[\]{},;:.=~&|^?!#@<>*+/%$`\"'-])",
    re.DOTALL,
)
_LONGEST = 4096
_MOST_DIGITS = 9


class Token(NamedTuple):
    """A word: its kind (`name`, `number`, `sign`), its text, and its line.

    A name is plain if it stands without a backslash, so that it can be a keyword.
    """

    kind: str
    text: str
    line: int
    plain: bool


def tokens_of(text: str) -> Iterator[Token]:
    """Split a file into words, without comments, attributes and white space.

    Raises:
        NetlistError: a character that Verilog does not have, or a comment or word that does not end.
    """
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NetlistError(f"line {line}: {text[place]!r} is not Verilog")
        kind, word = str(match.lastgroup), match.group()
        if kind == "comment":
            end = text.find("*/" if word == "/*" else "*)", place + 2)
            if end < 0:
                raise NetlistError(f"line {line}: {word} without an end")
            word = text[place : end + 2]
        elif kind != "space":
            if len(word) > _LONGEST:
                raise NetlistError(f"line {line}: a word of {len(word)} characters: expected at most {_LONGEST}")
            plain = kind != "escaped"
            yield Token(kind if plain else "name", word if plain else word[1:], line, plain)
        place += len(word)
        line += word.count("\n")


class TokenReader:
    """Words one by one."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self._last = Token("end", "the end of the file", 1, False)
        self._ahead: list[Token] = []

    def _peek(self) -> Token:
        if not self._ahead:
            end = Token("end", "the end of the file", self._last.line, False)
            self._ahead.append(next(self._tokens, end))
        return self._ahead[-1]

    @property
    def at_end(self) -> bool:
        """Whether there are no more."""
        return self.kind == "end"

    @property
    def line(self) -> int:
        """Line of the next word."""
        return self._peek().line

    @property
    def kind(self) -> str:
        """Kind of the next word."""
        return self._peek().kind

    def take(self) -> Token:
        """The next word.

        Raises:
            NetlistError: the file has ended.
        """
        token = self._peek()
        if token.kind == "end":
            raise NetlistError(f"line {token.line}: the file ends in the middle of a module")
        self._last = self._ahead.pop()
        return token

    def unread(self) -> None:
        """Go one word back."""
        self._ahead.append(self._last)

    def next_is(self, *texts: str) -> bool:
        """Whether the next word is one of these."""
        token = self._peek()
        return token.plain and token.text in texts

    def accept(self, *texts: str) -> bool:
        """Take the next word if it is one of these."""
        if not self.next_is(*texts):
            return False
        self.take()
        return True

    def expect(self, text: str) -> None:
        """Take a word that must be there.

        Raises:
            NetlistError: another word is there.
        """
        if not self.accept(text):
            token = self._peek()
            raise NetlistError(f"line {token.line}: {token.text[:40]!r}: expected {text!r}")

    def identifier(self, what: str) -> str:
        """Take a name.

        Raises:
            NetlistError: something else is there.
        """
        token = self._peek()
        if token.kind != "name":
            raise NetlistError(f"line {token.line}: {token.text[:40]!r}: expected {what}")
        return self.take().text

    def integer(self) -> int:
        """Take a number without a base.

        Raises:
            NetlistError: something else is there, or the number is very large.
        """
        token = self._peek()
        digits = token.text.replace("_", "")
        if not digits.isascii() or not digits.isdigit() or len(digits) > _MOST_DIGITS:
            raise NetlistError(f"line {token.line}: {token.text[:40]!r}: expected a number")
        self.take()
        return int(digits)
