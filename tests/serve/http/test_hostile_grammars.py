"""Forms and templates that mean harm: refused or bounded, and no other answer changes by them."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_texts import CODE, PROSE

from seqloom.data.template_worker import receive, send
from seqloom.data.tokenizer import TextTokenizer, train_tokenizer
from seqloom.serve.config import Grammar
from seqloom.serve.engine import Engine
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.model import ServedModel
from seqloom.serve.worker import Worker
from tiny_models import make

pytest.importorskip("llguidance")

TOKENS = 96
PROMPTS = ([1, 40, 50, 60, 70], [1, 90, 91, 92])


def schema(**fields: Any) -> str:
    return json.dumps({"type": "object", **fields})


def nested(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(levels - 1)}} if levels else {"type": "string"}


FORMS = {
    "deep schema": ("json_schema", json.dumps(nested(200))),
    "endless reference": ("json_schema", json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
    "tree without end": (
        "json_schema",
        json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
    ),
    "nothing fits": ("json_schema", schema(allOf=[{"type": "string"}, {"type": "number"}])),
    "long list": ("json_schema", json.dumps({"type": "array", "minItems": 10**9, "items": {"type": "null"}})),
    "long text": ("json_schema", json.dumps({"type": "string", "minLength": 10**7})),
    "many choices": ("json_schema", json.dumps({"enum": [f"{number:x}" * 9 for number in range(1500)]})),
    "patterns": ("json_schema", schema(properties={f"k{n}": {"pattern": "^(a+)+(b|bb)*$"} for n in range(200)})),
    "no schema": ("json_schema", '{"type": 5}'),
    "powers": ("regex", "(((a{1,100}){1,100}){1,100}){1,100}"),
    "from the end": ("regex", "(.*a.{60})+"),
    "looks back": ("regex", r"(a)\1(?=b)"),
    "open bracket": ("regex", "(" * 31),
    "brackets": ("regex", "(" * 1000 + ")" * 1000),
    "ambiguous": ("lark", 'start: start start start | "a" | "aa" | '),
    "nowhere": ("lark", "start: nowhere"),
    "itself": ("lark", "start: start"),
    "files": ("lark", '%import .secret (x)\nstart: x'),
    "tokens that are none": ("lark", "start: <[999999]>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = TextTokenizer(train_tokenizer([CODE, PROSE], 400).definition, bos=1, eos=2, pad=0)
    return Engine((make("dense", vocab_size=400), tokenizer), max_rows=4, cache_tokens=4096)


class Pipes:
    """A worker in a thread, asked as the front asks it."""

    def __init__(self, engine: Engine) -> None:
        (into, self._to), (self._from, out) = (tuple(os.pipe()) for _ in range(2))
        self._source, self._sink = os.fdopen(self._from, "rb"), os.fdopen(self._to, "wb")
        self._ends = os.fdopen(into, "rb"), os.fdopen(out, "wb")
        self._thread = threading.Thread(target=Worker(engine, *self._ends).run)
        self._thread.start()

    def submit(self, identity: int, prompt: list[int], grammar: tuple[str, str] | None, **sampling: Any) -> None:
        form = None if grammar is None else {"kind": grammar[0], "text": grammar[1]}
        settings = {"temperature": 0.0, **sampling, "grammar": form}
        request = {"prompt": prompt, "sampling": settings, "draft": 0, "marks": None}
        send(self._sink, {"do": "submit", "id": identity, **request})

    def updates(self) -> Iterator[dict[str, Any]]:
        while (message := receive(self._source)) is not None:
            yield from message.get("updates", ())

    def close(self) -> None:
        send(self._sink, {"do": "stop"})
        self._thread.join(20)
        for stream in (self._source, self._sink, *self._ends):
            stream.close()


def neighbours(engine: Engine, forms: dict[str, tuple[str, str]]) -> tuple[list[list[Any]], dict[str, str]]:
    """What two plain requests are answered while forms are asked for beside them, and how the answers of those end."""
    pipes, answers, ends = Pipes(engine), [[] for _ in PROMPTS], {}
    try:
        for identity, prompt in enumerate(PROMPTS):
            pipes.submit(identity, prompt, None, max_tokens=TOKENS, logprobs=1, ignore_eos=True)
        for identity, form in enumerate(forms.values(), len(PROMPTS)):
            pipes.submit(identity, [1, 33, 44], form, max_tokens=6)
        names = dict(enumerate(forms, len(PROMPTS)))
        left = len(PROMPTS) + len(forms)
        for update in pipes.updates():
            if update["id"] < len(PROMPTS):
                answers[update["id"]] += zip(update["tokens"], update.get("logprobs", ()), strict=False)
            if "finish" in update:
                ends.update({names[update["id"]]: update["finish"]} if update["id"] in names else {})
                left -= 1
            if not left:
                return answers, ends
        raise AssertionError("the worker ended")
    finally:
        pipes.close()


@pytest.mark.full
def test_hostile_forms_change_nothing_beside_them(engine: Engine) -> None:
    alone, _ = neighbours(engine, {})
    assert [len(answer) for answer in alone] == [TOKENS] * len(PROMPTS)
    beside, ends = neighbours(engine, FORMS)
    assert beside == alone
    assert set(ends.values()) <= {"refused", "error", "length", "stop", "eos"}
    for name in ("deep schema", "no schema", "looks back", "open bracket", "brackets", "nowhere", "files"):
        assert ends[name] == "refused", name


@pytest.mark.full
def test_no_token_waits_for_a_grammar(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate, compile = threading.Event(), threading.Event(), engine.compile

    def slowly(grammar: Grammar) -> None:
        begun.set()
        assert gate.wait(20)
        compile(grammar)

    monkeypatch.setattr(engine, "compile", slowly)
    pipes, order = Pipes(engine), []
    try:
        for identity in (1, 2):
            pipes.submit(identity, [1, 33, 44], ("regex", "a{3}"), max_tokens=6)
        assert begun.wait(20)
        send(pipes._sink, {"do": "cancel", "id": 2})
        pipes.submit(0, PROMPTS[0], None, max_tokens=20, ignore_eos=True)
        for update in pipes.updates():
            if "finish" in update:
                order.append(update["id"])
                gate.set()
            if update["id"] == 1 and "finish" in update:
                break
        assert order == [0, 1]  # the second was cancelled before its grammar was ready
    finally:
        gate.set()
        pipes.close()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "steps|range"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "no go"),
        ("{% set a = messages[0].content * 99999999 %}{{ a }}", "memory|steps|rendered"),
    ],
)
def test_hostile_templates_are_refused(tmp_path: Path, template: str, reason: str) -> None:
    plain = train_tokenizer([CODE], 300)
    TextTokenizer(plain.definition, bos=1, eos=2, pad=0, chat_template=template).save(tmp_path)
    with pytest.raises(RefusedError, match=reason):
        ServedModel(tmp_path, "fake").render([{"role": "user", "content": "go"}], None, {})
