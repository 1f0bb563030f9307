"""What a chat template is written with, read without running it.

Templates are written for jinja2; here minijinja renders them. The two languages are nearly one. This module knows where
they part: it rewrites what can be said otherwise, and refuses, before anything is rendered, what only one of them knows
or what they understand differently. It also refuses what a chat template has no business with: other files, and the
insides of Python.

    x|tojson                     spelled as Python's json.dumps does; of a value that does not exist, an error
    x is iterable, sequence      answered as Python does: yes for a text, no for None
    for x in none                an error, not an empty loop
    {% generation %}             a macro that can put marks around what an assistant wrote
    x|default(y, boolean=true)   without the name

Two differences remain. Where jinja2 fails over values that do not belong together, as in `'a' < 1` or `none|list`,
minijinja may go on; and a list that the template itself made is printed with its unprintable characters as they are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from seqloom.core.errors import DataError
from seqloom.data.template_tokens import Tag, Token, read_tags, refusal
from seqloom.data.template_variables import read_variables
from seqloom.data.template_worker import UNDEFINED

START, END = "seqloom_start", "seqloom_end"
"""Variables that are written before and after what stands in a generation block."""

TAGS = {
    *("for", "endfor", "if", "elif", "else", "endif", "set", "endset", "macro", "endmacro", "call", "endcall"),
    *("filter", "endfilter", "with", "endwith", "break", "continue", "generation", "endgeneration"),
}
_LAZY = {"map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "reverse"}
FILTERS = _LAZY | {
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "format", "groupby", "indent", "int"),
    *("items", "join", "last", "length", "list", "lower", "max", "min", "replace", "round", "safe", "sort", "string"),
    *("sum", "title", "tojson", "trim", "upper"),
}
_REWRITTEN_TESTS = {"iterable", "sequence"}
TESTS = _REWRITTEN_TESTS | {
    *("boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "greaterthan", "gt", "in"),
    *("integer", "le", "lessthan", "lt", "mapping", "ne", "none", "number", "odd", "sameas", "string", "true"),
    "undefined",
}
METHODS = {
    *("capitalize", "count", "endswith", "find", "isalnum", "isalpha", "isdigit", "islower", "isnumeric", "isspace"),
    *("isupper", "join", "lower", "lstrip", "replace", "rfind", "rstrip", "split", "startswith", "strip", "upper"),
    *("get", "items", "keys", "values", "changed", "cycle"),
}
FUNCTIONS = {"dict", "joiner", "namespace", "raise_exception", "range", "strftime_now"}
_FOREIGN_NAMES = {"cycler", "kwargs", "lipsum", "self", "super", "varargs"}
_OF_DICTS = {*("clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values")}
_WORDS = {"true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "else"}
_SIGNS = {"==", "!=", "<", ">", "<=", ">="}
_PLACE_OF_TEST = {"select": 0, "reject": 0, "selectattr": 2, "rejectattr": 2}
"""Filters that take the name of a test, and at which token of the call."""

_MARK = '"' + UNDEFINED.replace("\0", "\\u0000") + '"'


class Reading(NamedTuple):
    """A template as minijinja is to read it."""

    source: str
    extra_lines: int
    """Lines before the first of the template itself."""
    marks_answers: bool
    """It has generation blocks."""
    reads: frozenset[str]
    """Variables that it expects from outside, or can take from there."""


def read_template(source: str) -> Reading:
    """Rewrite a template of jinja2 for minijinja.

    Raises:
        DataError: it uses what cannot be rendered here as jinja2 renders it.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    changes: list[tuple[int, int, str]] = []
    tags = list(read_tags(source))
    for tag in tags:
        changes += _Rules(source, tag).changes()
    pieces, end = [], 0
    for first, last, text in sorted(changes):
        pieces += [source[end:first], text]
        end = last
    rewritten = "".join([*pieces, source[end:]])
    marks_answers = any(tag.name == "generation" for tag in tags)
    if marks_answers:
        # The line break ends with the tag, so that the template begins at the beginning of a line as before.
        macro = (
            f"{{% macro seqloom_generation() %}}{{{{ {START} }}}}{{{{ caller() }}}}{{{{ {END} }}}}{{% endmacro %}}\n"
        )
        rewritten = macro + rewritten
    return Reading(rewritten, int(marks_answers), marks_answers, read_variables(tags) - FUNCTIONS)


class _Rules:
    """What is allowed in one block or expression, and what is to be written otherwise."""

    def __init__(self, source: str, tag: Tag) -> None:
        self._source, self._tag, self._at = source, tag, tag.at
        self._first_in = tag.first("in")
        self._ends = _ends(tag.tokens)

    def changes(self) -> Iterator[tuple[int, int, str]]:
        """Checks everything and gives what is to be replaced: from where, to where, and by what."""
        if self._tag.is_block:
            yield from self._of_the_block()
        for place, token in enumerate(self._tag.tokens):
            if place == 0 and self._tag.is_block:
                continue
            if token.kind == "name":
                yield from self._of_a_name(place, token)
            elif token.kind == "number":
                self._check_number(token)
            elif token.kind == "text":
                if self._at(place - 1).text == "[" and token.text[1:].startswith("__"):
                    raise self._refusal(token, f"{token.text} is an inside of Python")
            elif token.text == "(" and self._at(place - 1).text in (")", "]"):
                raise self._refusal(token, "only what has a name can be called here")
            elif token.text == "%" and self._at(place - 1).kind == "text":
                raise self._refusal(token, "a text has no operator % here; the filter 'format' does the same")

    def _of_the_block(self) -> Iterator[tuple[int, int, str]]:
        first, second = self._at(0), self._at(1)
        if self._tag.name not in TAGS:
            raise self._unknown(first, "tag", {tag for tag in TAGS if not tag.startswith("end")} | {"raw"})
        if self._tag.name == "generation":
            yield first.start, first.end, "call seqloom_generation()"
        elif self._tag.name == "endgeneration":
            yield first.start, first.end, "endcall"
        elif self._tag.name == "filter":
            self._check_filter(1)
            if second.text in _LAZY | {"tojson"}:
                raise self._refusal(second, f"a block of the filter '{second.text}' is not known here")
        elif self._tag.name == "for":
            yield from self._of_the_loop()

    def _of_the_loop(self) -> Iterator[tuple[int, int, str]]:
        """A plain path to loop over, such as `message.tool_calls`, must be something to loop over."""
        path: list[Token] = []
        for token in self._tag.tokens[self._first_in + 1 :]:
            if token.text in ("if", "recursive"):
                break
            path.append(token)
        plain = all(token.kind != "mark" or token.text in ".[]-:" for token in path)
        if path and plain and path[0].kind == "name" and not any(token.text in _WORDS for token in path):
            first, last = path[0].start, path[-1].end
            spelled = self._source[first:last]
            yield first, last, f"({spelled} if {spelled}|default({_MARK}) is seqloom_loopable)"

    def _of_a_name(self, place: int, token: Token) -> Iterator[tuple[int, int, str]]:
        before, after = self._at(place - 1), self._at(place + 1)
        if token.text.startswith(("__", "seqloom_")):
            raise self._refusal(token, f"the name '{token.text}' is not allowed here")
        if before.text == "|":
            self._check_filter(place)
            if token.text == "tojson":
                yield token.start, token.end, f"default({_MARK})|tojson|seqloom_json"
        elif before.text == ".":
            if after.text == "(" and token.text not in METHODS:
                raise self._unknown(token, "method", METHODS)
            if after.text != "(" and token.text in _OF_DICTS:
                raise self._refusal(
                    token, f"'.{token.text}' without a call is no entry in jinja2; write ['{token.text}'] for one"
                )
        elif before.text == "is" or (before.text == "not" and self._at(place - 2).text == "is"):
            if token.text not in TESTS | {"not"}:
                raise self._unknown(token, "test", TESTS)
            if token.text in _REWRITTEN_TESTS:
                begin = (before if before.text == "is" else self._at(place - 2)).start
                yield begin, begin, f"|default({_MARK}) "
        elif token.text in _FOREIGN_NAMES and after.text != "=":
            raise self._refusal(token, f"the name '{token.text}' is not known here")
        elif token.text == "boolean" and before.text == "," and after.text == "=":
            yield token.start, after.end, ""

    def _check_filter(self, place: int) -> None:
        token = self._at(place)
        if token.text not in FILTERS:
            raise self._unknown(token, "filter", FILTERS)
        if token.text == "safe" and self._tag.first("+") < len(self._tag.tokens):
            raise self._refusal(token, "'safe' beside a '+' escapes the other text in jinja2; write '~'")
        if token.text not in _LAZY:
            return
        end = self._ends.get(place + 1, place + 1)
        looped = self._tag.name == "for" or self._first_in < place
        if token.text != "reverse" and self._at(end).text != "|" and not looped:
            # In jinja2 these give something that is always true and empty the second time.
            raise self._refusal(token, f"the filter '{token.text}' needs another after it, such as '|list'")
        if end > place + 1:
            self._check_names_in_call(token.text, place + 2)

    def _check_names_in_call(self, name: str, place: int) -> None:
        """The names of filters and tests that these filters take as texts."""
        if name == "map":
            kind, known, given = "filter", FILTERS - _LAZY - {"tojson"}, self._at(place)
        elif name in _PLACE_OF_TEST:
            kind, known, given = "test", TESTS - _REWRITTEN_TESTS | _SIGNS, self._at(place + _PLACE_OF_TEST[name])
        else:
            return
        if given.kind == "text" and given.text[1:-1] not in known:
            raise self._unknown(given, f"{kind} inside of '{name}'", known)

    def _check_number(self, token: Token) -> None:
        if "." in token.text or "e" in token.text.lower().removeprefix("0x"):
            value = float(token.text) if token.text[:2].lower() != "0x" else 0.0
            if "e" in repr(value):
                raise self._refusal(token, f"the number {token.text} is written differently here")

    def _refusal(self, token: Token, reason: str) -> DataError:
        return refusal(self._source, token.start, reason)

    def _unknown(self, token: Token, kind: str, known: set[str]) -> DataError:
        return self._refusal(
            token,
            f"the {kind} '{token.text.strip(chr(39) + chr(34))}' is not known here; known: {', '.join(sorted(known))}",
        )


def _ends(tokens: list[Token]) -> dict[int, int]:
    """The place after the bracket that closes the one at a place."""
    ends: dict[int, int] = {}
    open_places: list[int] = []
    for place, token in enumerate(tokens):
        if token.text in ("(", "[", "{"):
            open_places.append(place)
        elif token.text in (")", "]", "}") and open_places:
            ends[open_places.pop()] = place + 1
    return ends
