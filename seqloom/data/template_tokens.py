"""The text of a template of jinja2, cut into tags and these into tokens."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from seqloom.core.errors import DataError

_OPENED = re.compile(r"\{\{|\{%|\{#")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_CLOSED = {"{{": re.compile(r"[-+]?\}\}"), "{%": re.compile(r"[-+]?%\}")}
_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<number>0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][-+]?\d+)?)"""
    r"""|(?P<name>[^\W\d]\w*)|(?P<mark>//|\*\*|[=!<>]=|.)""",
    re.DOTALL,
)


class Token(NamedTuple):
    """A word of the language and where it stands."""

    kind: str
    """text, number, name, or mark"""
    text: str
    start: int
    end: int


_NOTHING = Token("mark", "", 0, 0)


class Tag(NamedTuple):
    """A block `{% … %}` or an expression `{{ … }}`."""

    is_block: bool
    tokens: list[Token]

    @property
    def name(self) -> str:
        """What kind of block it is; nothing for an expression."""
        return self.tokens[0].text if self.is_block and self.tokens else ""

    def at(self, place: int) -> Token:
        """The token at a place; an empty one before the first and after the last."""
        return self.tokens[place] if 0 <= place < len(self.tokens) else _NOTHING

    def first(self, *texts: str) -> int:
        """The place of the first token that is one of these; the number of tokens if there is none."""
        return next((place for place, token in enumerate(self.tokens) if token.text in texts), len(self.tokens))


def read_tags(source: str) -> Iterator[Tag]:
    """The tags of a template, without comments and raw text.

    Raises:
        DataError: one of them has no end.
    """
    place = 0
    while opened := _OPENED.search(source, place):
        opening = opened[0]
        if opening == "{#":
            place = source.find("#}", opened.end()) + 2
            if place < 2:
                raise refusal(source, opened.start(), "a comment without an end")
        elif raw := _RAW.match(source, opened.start()):
            end = _END_RAW.search(source, raw.end())
            if end is None:
                raise refusal(source, opened.start(), "'raw' without 'endraw'")
            place = end.end()
        else:
            tokens, place = _tokens(source, opened.end(), opening)
            yield Tag(opening == "{%", tokens)


def refusal(source: str, place: int, reason: str) -> DataError:
    """Why a template is not taken, and in which line."""
    line = source.count("\n", 0, place) + 1
    return DataError(f"the chat template cannot be rendered here: line {line}: {reason}")


def _tokens(source: str, start: int, opening: str) -> tuple[list[Token], int]:
    tokens: list[Token] = []
    depth, place = 0, start
    if source[place : place + 1] in ("-", "+"):
        place += 1
    while place < len(source):
        if source[place].isspace():
            place += 1
            continue
        if depth == 0 and (closed := _CLOSED[opening].match(source, place)):
            return tokens, closed.end()
        found = _TOKEN.match(source, place)
        assert found is not None
        assert found.lastgroup is not None
        depth += (found[0] in "([{") - (found[0] in ")]}")
        tokens.append(Token(found.lastgroup, found[0], place, found.end()))
        place = found.end()
    raise refusal(source, start, f"'{opening}' without an end")
