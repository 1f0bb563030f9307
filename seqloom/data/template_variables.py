"""Which variables a template expects from outside.

A name that it reads and never sets comes from outside. One that it also sets may come from there too, if it asks first
whether it is there: `{% if not date is defined %}{% set date = … %}{% endif %}`, `{% set date = date or … %}`.
"""

from collections.abc import Iterable, Iterator

from seqloom.data.template_tokens import Tag

_WORDS = {
    *("true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else", "recursive"),
    *("loop", "caller"),
}
_ASKING = {"defined", "undefined"}


def read_variables(tags: Iterable[Tag]) -> frozenset[str]:
    """Names of the variables that a template may be given."""
    read, bound, asked = set[str](), set[str](), set[str]()
    for tag in tags:
        places = set(_bindings(tag))
        bound |= {tag.at(place).text for place in places}
        for place in _readings(tag, places):
            name = tag.at(place).text
            read.add(name)
            if _asks(tag, place):
                asked.add(name)
    return frozenset((read - bound) | asked)


def _readings(tag: Tag, bindings: set[int]) -> Iterator[int]:
    for place in range(int(tag.is_block), len(tag.tokens)):
        before, token, after = tag.at(place - 1), tag.at(place), tag.at(place + 1)
        is_argument = after.text == "=" and before.text in ("(", ",")
        is_test = before.text == "is" or (before.text == "not" and tag.at(place - 2).text == "is")
        if token.kind != "name" or token.text in _WORDS or place in bindings or is_argument or is_test:
            continue
        if before.text not in (".", "|") and not (tag.name == "filter" and place == 1):
            yield place


def _bindings(tag: Tag) -> Iterator[int]:
    """Places of the names that a block gives a value to."""
    if tag.name in ("set", "for"):
        last = tag.first("in") if tag.name == "for" else tag.first("=", "|")
        for place in range(1, last):
            if tag.at(place).kind == "name" and "." not in (tag.at(place - 1).text, tag.at(place + 1).text):
                yield place
    elif tag.name == "with":
        yield from (place for place in range(1, len(tag.tokens)) if tag.at(place + 1).text == "=")
    elif tag.name == "macro" or (tag.name == "call" and tag.at(1).text == "("):
        if tag.name == "macro":
            yield 1
        for place in range(2, len(tag.tokens)):
            if tag.at(place).kind == "name" and tag.at(place - 1).text in ("(", ","):
                yield place
            if tag.at(place).text == ")":
                return


def _asks(tag: Tag, place: int) -> bool:
    """Whether it goes on with `is defined`, with `|default(…)`, or as in `set date = date or …`."""
    words = [tag.at(place + distance).text for distance in (1, 2, 3)]
    if words[0] == "or":
        return tag.name == "set" and tag.at(1).text == tag.at(place).text
    if words[0] == "|":
        return words[1] in ("default", "d")
    return words[0] == "is" and (words[2] if words[1] == "not" else words[1]) in _ASKING
