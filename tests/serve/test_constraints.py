import json
import time
from pathlib import Path

import numpy as np
import pytest
from serve.byte_tokens import ByteTokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from seqloom.core.errors import ConfigError
from seqloom.data.tokenizer import SPECIALS, TextTokenizer, train_tokenizer
from seqloom.serve.call_grammar import required_call
from seqloom.serve.config import Grammar
from seqloom.serve.constraints import MAX_CHARACTERS, MAX_DEPTH, Grammars, Matcher, check_grammar
from seqloom.serve.tool_calls import CallDelta, ToolCallParser
from seqloom.serve.vocabulary import Vocabulary

pytest.importorskip("llguidance")

SAMPLE = 'naïve café – 日本語 😀 {"name": "x", "value": [1, 2.5, true]}\n<parameter=a> 0123456789 ' * 5


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer([SAMPLE], 500)


@pytest.fixture(scope="module")
def grammars(tokenizer: TextTokenizer) -> Grammars:
    return Grammars(Vocabulary(tokenizer, 512))


def start(grammars: Grammars, kind: str, text: str = "", ends: tuple[int, ...] = (2,)) -> Matcher:
    return grammars.matcher(Grammar(kind=kind, text=text), list(ends))


def accepts(matcher: Matcher, tokenizer: TextTokenizer, text: str) -> bool:
    """Whether the grammar lets this text be written and the answer end there."""
    for token in tokenizer.encode(text, specials=True):
        if not matcher.mask()[token]:
            return False
        matcher.take(token)
    return bool(matcher.mask()[tokenizer.eos])


def test_the_bytes_of_every_token_are_what_it_decodes_to(tokenizer: TextTokenizer) -> None:
    pieces = Vocabulary(tokenizer, 512).pieces
    assert [piece is None for piece in pieces[: len(SPECIALS)]] == [True] * len(SPECIALS)
    assert pieces[tokenizer.size :] == [None] * (512 - tokenizer.size)
    for index, piece in enumerate(pieces[len(SPECIALS) : tokenizer.size], start=len(SPECIALS)):
        assert piece is not None
        assert piece.decode(errors="replace") == tokenizer.decode([index])
    ids = tokenizer.encode(SAMPLE)
    assert b"".join(pieces[index] or b"" for index in ids) == SAMPLE.encode()
    assert sum(len(piece or b"") for piece in pieces) == tokenizer.token_bytes.sum()


def test_bytes_of_sentencepiece_vocabularies() -> None:
    pieces = ["<s>", "</s>", "<0xE6>", "<0x97>", "<0xA5>", "▁", "a", "▁a", "<b>"]
    inner = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[("▁", "a")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<s>", "</s>"])
    inner.add_tokens(["<b>"])
    vocabulary = Vocabulary(TextTokenizer(inner.to_str(), bos=0, eos=1, pad=None), 10)
    assert vocabulary.pieces == [None, None, b"\xe6", b"\x97", b"\xa5", b" ", b"a", b" a", b"<b>", None]


def test_tokens_that_would_complete_a_tag() -> None:
    tokenizer = ByteTokens()
    extra = [tokenizer.token(piece) for piece in (b"nk>", b"nk>\n", b"<think>", b"x<think>y", b"k>a", b"\xffk>")]
    vocabulary = Vocabulary(tokenizer, tokenizer.size + 3)
    whole, inside = [extra[2], extra[3]], ord(">")
    assert vocabulary.completing("<think>", "abc").tolist() == whole
    assert vocabulary.completing("<think>", "abc<thi").tolist() == sorted([extra[0], extra[1], *whole])
    assert vocabulary.completing("<think>", "<think").tolist() == [inside, *whole]
    assert vocabulary.completing("<think>", "abc<thi", beyond=True).tolist() == [extra[1], extra[3]]


def test_a_mask_allows_what_the_grammar_does_and_then_only_the_end(
    grammars: Grammars, tokenizer: TextTokenizer
) -> None:
    matcher = start(grammars, "regex", "ab?")
    letters = {letter: tokenizer.encode(letter)[0] for letter in "ab"}
    assert np.flatnonzero(matcher.mask()).tolist() == [letters["a"]]
    matcher.take(letters["a"])
    assert np.flatnonzero(matcher.mask()).tolist() == sorted([2, letters["b"]])
    matcher.take(letters["b"])
    assert np.flatnonzero(matcher.mask()).tolist() == [2]
    matcher.take(2)
    assert np.flatnonzero(matcher.mask()).tolist() == [2]


def test_any_of_the_ends_may_end(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    matcher = start(grammars, "regex", "a", ends=(2, 11))
    assert not matcher.mask()[[2, 11]].any()
    matcher.take(tokenizer.encode("a")[0])
    assert np.flatnonzero(matcher.mask()).tolist() == [2, 11]


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "value": {"type": "array", "items": {"type": "number"}}},
        "required": ["name"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        (
            "json_schema",
            SCHEMA,
            ['{"name": "日本 😀"}', '{"name":"x","value":[1,2.5]}', '{\n  "name" : "  ",\n\t"value":[ 1 ]\n}'],
            ['{"value":[1]}', '{"name":3}', "[", '{"name":  "x"}', '{\n\n"name": "x"}', "{\n" + " " * 25],
        ),
        ("json", "", ['{"a": [1, {"b": null}]}', "{}"], ["[1]", "3", "{a}"]),
        ("regex", "[a-c]{2,3}(日|😀)", ["ab日", "abc😀"], ["a日", "abcd", "ab"]),
        ("lark", 'start: "x" start | "y"', ["y", "xxxy"], ["x", "yy"]),
    ],
)
def test_texts_are_told_apart(
    grammars: Grammars, tokenizer: TextTokenizer, kind: str, text: str, good: list[str], bad: list[str]
) -> None:
    check_grammar(Grammar(kind=kind, text=text))
    assert all(accepts(start(grammars, kind, text), tokenizer, each) for each in good)
    assert not any(accepts(start(grammars, kind, text), tokenizer, each) for each in bad)


def test_a_tokenizer_of_any_kind_can_be_constrained() -> None:
    tokenizer = ByteTokens()
    matcher = Grammars(Vocabulary(tokenizer, tokenizer.size)).matcher(
        Grammar(kind="regex", text="ab+"), [tokenizer.eos]
    )
    for byte in b"abb":
        assert matcher.mask()[byte]
        matcher.take(byte)
    assert np.flatnonzero(matcher.mask()).tolist() == [ord("b"), tokenizer.eos]


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def many(count: int) -> str:
    return json.dumps({"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}})


HOSTILE = [
    ("json_schema", "{"),
    ("json_schema", "5"),
    ("json_schema", '{"a": NaN}'),
    ("json_schema", '{"type": "nope"}'),
    ("json_schema", '{"not": {}}'),
    ("json_schema", "false"),
    ("json_schema", '{"$ref": "http://localhost/x"}'),
    ("json_schema", '{"$ref": "#/nowhere"}'),
    ("json_schema", nested(MAX_DEPTH + 1)),
    ("json_schema", nested(5000)),
    ("json_schema", "[" * 60_000),
    ("json_schema", many(5000)),
    ("json_schema", '{"pattern": "(?<=a)b", "type": "string"}'),
    ("json_schema", '{"const": "\ud800"}'),
    ("regex", "a" * (MAX_CHARACTERS + 1)),
    ("regex", "[a-z"),
    ("regex", "(?=a)b"),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("regex", "\ud800"),
    ("lark", "start: nowhere"),
    ("lark", "x"),
    ("lark", 'start: "a" start' * 2000),
    ("lark", "start: @other"),
]


def test_it_is_said_what_is_wrong(grammars: Grammars) -> None:
    with pytest.raises(ConfigError, match=r"look-around, .* is not supported"):
        check_grammar(Grammar(kind="regex", text="(?=a)b"))
    without_end = grammars.matcher(Grammar(kind="json_schema", text='{"$ref": "#"}'), [2])
    with pytest.raises(ConfigError, match="no text of this form"):
        without_end.mask()


@pytest.mark.parametrize(("kind", "text"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_used_is_refused_at_once(grammars: Grammars, kind: str, text: str) -> None:
    grammar = Grammar(kind=kind, text=text)
    with pytest.raises(ConfigError, match="grammar: ") as error:
        check_grammar(grammar)
    assert len(str(error.value)) < 500
    with pytest.raises(ConfigError, match="grammar: "):
        grammars.matcher(grammar, [2])


BOUNDED = [
    ("regex", "(((a{1,1000}){1,1000}){1,1000})b"),
    ("regex", "(a|aa)*" * 500),
    ("regex", "(.*a.{30})" * 3),
    ("json_schema", '{"$ref": "#"}'),
    ("json_schema", json.dumps({"type": "array", "minItems": 10**9})),
    ("json_schema", json.dumps({"type": "string", "minLength": 10**6, "maxLength": 10**9})),
    ("json_schema", json.dumps({"type": "string", "pattern": "(a.{0,500}b){500}"})),
    ("json_schema", json.dumps({"enum": [f"value {number}" for number in range(1500)]})),
    ("json_schema", json.dumps({"anyOf": [json.loads(many(9)) for _ in range(100)]})),
    ("json_schema", many(1000)),
    ("json_schema", nested(MAX_DEPTH - 1)),
    ("lark", 'start: start start | "a"'),
    ("lark", 'start: ("a"|"b"|"a" "b"){1,5000}'),
]


@pytest.mark.parametrize(("kind", "text"), BOUNDED, ids=range(len(BOUNDED)))
def test_heavy_ones_are_refused_or_take_bounded_time(
    grammars: Grammars, tokenizer: TextTokenizer, kind: str, text: str
) -> None:
    """In time of this thread, which shares its processor; it is a bound against blocking, not a measurement."""
    choose = np.random.default_rng(0)
    begun, longest = time.thread_time(), 0.0
    try:
        matcher = start(grammars, kind, text)
        compiled = time.thread_time() - begun
        for _ in range(25):
            before = time.thread_time()
            token = int(choose.choice(np.flatnonzero(matcher.mask())))
            matcher.take(token)
            longest = max(longest, time.thread_time() - before)
            if token == tokenizer.eos:
                break
    except ConfigError:
        compiled = time.thread_time() - begun
    assert compiled < 3
    assert longest < 1


def test_a_compiled_grammar_is_kept_and_its_uses_do_not_mix(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    first, second = start(grammars, "regex", "(ab)+"), start(grammars, "regex", "(ab)+")
    first.take(tokenizer.encode("a")[0])
    assert np.flatnonzero(first.mask()).tolist() == [tokenizer.encode("b")[0]]
    assert not second.begun
    assert second.mask()[tokenizer.encode("a")[0]]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "more": {"type": "object"}},
                "required": ["text"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("first", "second")
]


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize("special", [True, False])
def test_a_required_call_can_only_be_a_call(
    form: str, special: bool, grammars: Grammars, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    if not special:
        tokenizer = ByteTokens()
        grammars = Grammars(Vocabulary(tokenizer, tokenizer.size))
    grammar = required_call(form, TOOLS, tokenizer)
    written = {
        "xml": '<tool_call>\n<function=second>\n<parameter=text>\na <b>\n"c"\n</parameter>\n<parameter=count>\n3\n'
        "</parameter>\n</function>\n</tool_call>",
        "json": '<tool_call>\n{"name": "second", "arguments": {"text": "a", "count": 3}}\n</tool_call>',
    }[form]
    assert accepts(grammars.matcher(grammar, [tokenizer.eos]), tokenizer, written)
    found = ToolCallParser(form, TOOLS).push(written)
    assert [each.name for each in found if isinstance(each, CallDelta) and each.name] == ["second"]
    changes = (("second", "third"), ("3", "x"), ("3", "   3"))
    for wrong in ("hello", *(written.replace(*change) for change in changes)):
        assert not accepts(grammars.matcher(grammar, [tokenizer.eos]), tokenizer, wrong)


def test_a_required_call_needs_a_tool() -> None:
    with pytest.raises(ConfigError, match="tools: 0"):
        required_call("json", [], ByteTokens())
