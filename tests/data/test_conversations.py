"""From what people have to what is learned: shapes, borders of answers, refusals, the walk from file to rows."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import micro_runs
import seqloom
import tiny_models
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.logs import read_metrics
from seqloom.data.config import DataConfig, PhaseConfig, SourceConfig
from seqloom.data.conversations import Chat, Pair, RecordError, Text, understand
from seqloom.data.examples import Encoder
from seqloom.data.prepare import Prepared, prepare
from seqloom.data.report import report_lines
from seqloom.data.rows import NO_TARGET
from seqloom.data.tokenizer import TextTokenizer, open_tokenizer
from seqloom.systems.hybrid_lm.evaluate import evaluate, measure

CHATML = """\
{%- if brief %}<|im_start|>system
Be brief.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

FORGETFUL = """\
{%- set turn = namespace(last=0) %}
{%- for message in messages if message.role == "user" %}{% set turn.last = message.content %}{% endfor %}
{%- set turn.reached = false %}
{%- for message in messages %}
{%- if message.role == "user" and message.content == turn.last %}{% set turn.reached = true %}{% endif %}
{{- "<|im_start|>" + message.role + "\\n" }}
{%- if message.reasoning_content and turn.reached %}{{ "<think>" + message.reasoning_content + "</think>" }}{% endif %}
{{- message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
"""Leaves the thoughts of earlier turns away."""

ASK, TELL = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a truth."}


@pytest.fixture(scope="session")
def folder(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    (path / "chat_template.jinja").write_text(CHATML)
    return path


@pytest.fixture(scope="session")
def bare(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer without one."""
    path = tmp_path_factory.mktemp("bare")
    tokenizer.save(path)
    return path


def build(path: Path, folder: Path, **settings: Any) -> Prepared:
    sizes = {"vocab_size": 400, "sequence_length": 64, "rows_total": 30, "seed": 0, "progress": None}
    sizes |= {name: settings.pop(name) for name in list(settings) if name in sizes}
    sources = settings.pop("sources", (SourceConfig(path=str(path)),))
    return prepare(DataConfig(sources=sources, form="conversations", tokenizer=str(folder), **settings), **sizes)


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = ["it", "is", "a", "truth", "universally", "acknowledged", "that", "width", "times", "height", "want"]

    def say(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, most)))

    turns = [draw.randint(1, 2) for _ in range(count)]
    return [
        {
            "messages": [
                message
                for _ in range(number)
                for message in ({"role": "user", "content": say(5)}, {"role": "assistant", "content": say(8)})
            ]
        }
        for number in turns
    ]


def learned(made: Prepared) -> list[tuple[str, list[str]]]:
    """Every sequence as its text and its learned stretches, in the order of the rows."""
    found = []
    rows = made.every.rows(range(len(made.every)))
    for tokens, targets, documents in zip(*rows, strict=True):
        for number in range(int(documents.max()) + 1):
            ids = tokens[documents == number]
            after = torch.cat([torch.tensor([False]), (targets[documents == number] != NO_TARGET)[:-1]])
            stretches: list[list[int]] = []
            for at, is_learned in enumerate(after.tolist()):
                if is_learned:
                    if not after[at - 1]:
                        stretches.append([])
                    stretches[-1].append(int(ids[at]))
            decode = made.tokenizer.decode
            found.append((decode(ids.tolist(), specials=True), [decode(part, specials=True) for part in stretches]))
    return found


# What a record means.


def test_chats() -> None:
    assert understand({"messages": [ASK, TELL]}, "text") == Chat([ASK, TELL])
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    }
    tools = [{"type": "function", "function": {"name": "f"}}]
    for spelled in (tools, json.dumps(tools)):
        found = understand({"messages": [ASK, called], "tools": spelled, "id": 7}, "text")
        assert isinstance(found, Chat)
        assert found.tools == tools
        assert found.messages == [ASK, called]


def test_chats_as_sharegpt_writes_them() -> None:
    turns = [{"from": "human", "value": ASK["content"]}, {"from": "gpt", "value": TELL["content"]}]
    assert understand({"conversations": turns}, "text") == Chat([ASK, TELL])
    system = {"role": "system", "content": "Be brief."}
    assert understand({"conversations": turns, "system": "Be brief."}, "text") == Chat([system, ASK, TELL])


def test_nulls_of_a_table_are_no_fields() -> None:
    padded = [message | {"tool_calls": [], "name": None} for message in (ASK, TELL)]
    assert understand({"messages": padded, "tools": None, "prompt": None, "text": None}, "text") == Chat([ASK, TELL])


def test_other_fields_are_passed_over() -> None:
    messages = [message | {"id": 3, "weight": 1} for message in (ASK, TELL)]
    assert understand({"messages": messages, "source": "somewhere"}, "text") == Chat([ASK, TELL])


def test_what_follows_the_last_answer_is_left_away() -> None:
    assert understand({"messages": [ASK, TELL, ASK]}, "text") == Chat([ASK, TELL])


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    assert understand({"messages": [ASK | {"content": parts}, TELL]}, "text") == Chat([ASK, TELL])


@pytest.mark.parametrize("answer", ["completion", "response", "answer"])
def test_prompts(answer: str) -> None:
    assert understand({"prompt": "a", answer: "b"}, "text") == Pair("a", "b")
    assert understand({"prompt": [ASK], answer: [TELL]}, "text") == Chat([ASK, TELL], given=1)
    assert understand({"prompt": ASK["content"], answer: [TELL]}, "text") == Chat([ASK, TELL], given=1)
    assert understand({"prompt": [ASK, TELL, ASK], answer: TELL["content"]}, "text") == Chat(
        [ASK, TELL, ASK, TELL], given=3
    )


def test_instructions() -> None:
    record = {"instruction": "Add.", "input": "2 3", "output": "5", "text": "all of it once more"}
    found = understand(record, "text")
    assert isinstance(found, Pair)
    assert (found.question, found.answer) == ("Add.\n\n2 3", "5")
    assert found.prompt() == "Add.\n\n2 3\n\n"
    assert understand({"instruction": "Add.", "input": "", "output": "5"}, "text") == Pair("Add.", "5", "", "\n\n")
    with_system = understand({"question": "Why?", "answer": "So.", "system": "Be brief."}, "text")
    assert isinstance(with_system, Pair)
    assert with_system.prompt() == "Be brief.\n\nWhy?\n\n"
    assert [message["role"] for message in with_system.chat().messages] == ["system", "user", "assistant"]


def test_texts() -> None:
    assert understand({"text": "All of it."}, "text") == Text("All of it.")
    assert understand({"body": "All of it.", "text": 3}, "body") == Text("All of it.")


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"chosen": "a", "prompt": "b"}, "of no known shape", "keys here: chosen, prompt; known: messages, conversat"),
        ({}, "of no known shape", "keys here: none"),
        ({"text": " \n"}, "empty text", "'text' is empty"),
        ({"text": 3}, "not text", "'text' holds int, not text"),
        ({"prompt": "a", "answer": " "}, "empty answer", "'answer' is empty"),
        ({"prompt": "a", "answer": 3}, "broken messages", "'answer' holds int, not a list of messages"),
        ({"instruction": "a", "input": 3, "output": "b"}, "not text", "'input' holds int, not text"),
        ({"messages": "hello"}, "broken messages", "'messages' holds str, not a list of messages"),
        ({"messages": []}, "without an answer", "no message of the assistant among 0: nothing to learn"),
        ({"messages": [ASK]}, "without an answer", "no message of the assistant among 1: nothing to learn"),
        ({"messages": [ASK, "hi"]}, "broken messages", "message 2 is str, not an object"),
        ({"messages": [{"content": "x"}]}, "broken messages", "message 1 has no role; its keys: content"),
        (
            {"messages": [ASK, {"role": "assistant"}]},
            "broken messages",
            "message 2 holds NoneType as content, not text",
        ),
        ({"messages": [ASK, TELL | {"content": " "}]}, "empty answer", "message 2, of the assistant, is empty"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown speaker", "message 1 is from 'alien'; known: "),
        (
            {"messages": [ASK | {"content": [{"type": "image_url"}]}, TELL]},
            "not text",
            "message 1 has a part of type 'image_url'; only text can be learned",
        ),
        ({"messages": [ASK, TELL | {"weight": 0}]}, "weighted message", "message 2 has a weight"),
        ({"messages": [ASK, TELL], "tools": 3}, "broken tools", "'tools' holds int, not a list"),
        ({"messages": [ASK, TELL], "tools": "nope"}, "broken tools", "'tools' is not valid JSON"),
        ({"messages": [ASK, TELL], "system": 3}, "not text", "'system' holds int, not text"),
    ],
)
def test_unusable_records(record: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RecordError) as error:
        understand(record, "text")
    assert error.value.reason == reason
    assert detail in str(error.value)


# What of it is learned.


def test_answers_are_learned_with_the_mark_that_ends_them(folder: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.jsonl", {"messages": [ASK, TELL, ASK, TELL]}, {"prompt": "a", "completion": "b"})
    shown = dict(learned(build(path, folder)))
    asked, told = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "It is a truth.<|im_end|>"
    assert shown == {
        f"{asked}{told}\n{asked}{told}\n": [told, told],
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n": ["b<|im_end|>"],
    }


def test_without_a_template_the_answer_follows_the_prompt(bare: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines(
        "a.jsonl",
        {"prompt": "Q: one\nA:", "completion": " two"},
        {"prompt": "Q: ", "completion": "two"},
        {"instruction": "Add.", "output": "5"},
        {"text": "All of it."},
        {"text": "<s>Marked already.</s>"},
    )
    assert sorted(learned(build(path, bare))) == [
        ("<s>Add.\n\n5</s>", ["5</s>"]),
        ("<s>All of it.</s>", ["All of it.</s>"]),
        ("<s>Marked already.</s>", ["Marked already.</s>"]),
        ("<s>Q: one\nA: two</s>", [" two</s>"]),
        ("<s>Q: two</s>", ["two</s>"]),
    ]


def test_no_token_holds_text_from_both_sides_of_a_border(bare: Path, tokenizer: TextTokenizer) -> None:
    joined = tokenizer.encode("Q: width")
    (example,) = Encoder(open_tokenizer(bare), {}, 64).examples(Pair("Q: ", "width"))
    assert example is not None
    apart = [tokenizer.bos, *tokenizer.encode("Q: "), *tokenizer.encode("width"), tokenizer.eos]
    assert example.ids.tolist() == apart
    assert apart[1:-1] != joined
    assert tokenizer.decode(example.ids[example.learned].tolist(), specials=True) == "width</s>"


def test_offsets_that_leave_spaces_out_change_nothing(folder: Path, tmp_path: Path) -> None:
    """As tokenizers derived from GPT-2 give them."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    ours, theirs = (Encoder(open_tokenizer(place), {}, 200) for place in (folder, tmp_path))
    for answer in ("width", " width", "\n\nwidth times", "\n", "é width"):
        for record in (Pair(f"a width{answer}", f"{answer}and more"), Chat([ASK, TELL | {"content": f"{answer}."}])):
            for one, other in zip(ours.examples(record), theirs.examples(record), strict=True):
                assert one is not None
                assert other is not None
                assert one.ids.tolist() == other.ids.tolist()
                assert one.learned.tolist() == other.learned.tolist()


def test_a_long_text_goes_on_in_the_next_sequence(bare: Path) -> None:
    text = " ".join(f"width {number}" for number in range(40))
    tokenizer = open_tokenizer(bare)
    whole = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    pieces = [piece for piece in Encoder(tokenizer, {}, 10).examples(Text(text)) if piece is not None]
    assert [token for piece in pieces for token in piece.ids[piece.learned].tolist()] == whole[1:]
    assert all(len(piece.ids) == 10 and not piece.cut for piece in pieces[:-1])
    assert [piece.ids[0] for piece in pieces[1:]] == [piece.ids[-1] for piece in pieces[:-1]]
    assert sum(piece.n_bytes for piece in pieces) >= len(text)


def test_a_template_that_rewrites_history_gives_a_sequence_for_every_question(
    folder: Path, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    open_tokenizer(folder).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(FORGETFUL)
    thoughts = ("a", "b", "c")
    turns = [
        message
        for thought in thoughts
        for message in (
            {"role": "user", "content": f"about {thought}?"},
            {"role": "assistant", "content": f"so {thought}", "reasoning_content": f"think {thought}"},
        )
    ]
    made = build(write_lines("a.jsonl", {"messages": turns}, {"messages": turns[:2]}), tmp_path, sequence_length=256)
    answers = [f"<think>think {thought}</think>so {thought}<|im_end|>" for thought in thoughts]
    forgotten = [f"<|im_start|>assistant\nso {thought}<|im_end|>" for thought in thoughts]
    found = sorted(learned(made), key=lambda one: len(one[0]))
    assert [parts for _, parts in found] == [[answers[0]], [answers[0]], [answers[1]], [answers[2]]]
    assert [[turn in text for turn in forgotten] for text, _ in found[1:]] == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
    ]
    (source,) = made.report["sources"]
    assert (source["records"], source["sequences"]) == (2, 4)
    assert "2 conversations as 4 sequences, " in "\n".join(report_lines(made.report))
    assert source["valid"]["documents"] in (1, 3)  # all turns of a chat are on one side


def test_what_the_template_refuses_is_a_bad_record(
    folder: Path, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    open_tokenizer(folder).save(tmp_path)
    picky = "{% if messages[0].role != 'user' %}{{ raise_exception('a user must begin') }}{% endif %}" + CHATML
    (tmp_path / "chat_template.jinja").write_text(picky)
    path = write_lines("a.jsonl", *chats(3), {"messages": [TELL]})
    (source,) = build(path, tmp_path).report["sources"]
    assert source["skipped"] == {"cannot be rendered": 1}
    assert "a.jsonl:4: " in source["skipped_examples"][0]
    assert "a user must begin" in source["skipped_examples"][0]


def test_template_options_decide_the_text(folder: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.jsonl", *chats(3))
    assert all("Be brief." in text for text, _ in learned(build(path, folder, template_options={"brief": True})))
    assert not any("Be brief." in text for text, _ in learned(build(path, folder)))
    with pytest.raises(
        ConfigError, match=r"template_options: the chat template .* not read 'thinking'; it reads: brief"
    ):
        build(path, folder, template_options={"thinking": True})


def test_long_chats_are_cut_or_left_out(folder: Path, write_lines: Callable[..., Path]) -> None:
    long_answer = {"messages": [ASK, {"role": "assistant", "content": "width " * 150}]}
    long_question = {"messages": [{"role": "user", "content": "height " * 150}, TELL]}
    made = build(write_lines("a.jsonl", long_answer, long_question, *chats(5)), folder, sequence_length=128)
    (source,) = made.report["sources"]
    assert source["cut"] == 1
    assert source["skipped"] == {"too long: no answer within task.sequence_length": 1}
    assert source["records"] == 6
    assert source["longest"]["tokens"] == 128
    (stretch,) = next(parts for text, parts in learned(made) if "width width width" in text)
    assert not stretch.endswith("<|im_end|>")


# From file to rows.


def test_the_same_chats_from_any_file(folder: Path, tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    records = chats(30)
    lines = write_lines("a.jsonl", *records)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.read_bytes()))
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "e.parquet")
    made = [build(path, folder) for path in sorted(tmp_path.glob("?.*"))]
    assert len(made) == 5
    assert {one.fingerprint for one in made} == {made[0].fingerprint}
    assert sorted(learned(made[0])) == sorted(learned(made[-1]))


def test_a_folder_gives_its_records_only(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "README.md").write_text("not to be learned")
    (data / "a.jsonl").write_text("\n".join(map(json.dumps, chats(5))))
    made = build(data, folder)
    assert made.report["sources"][0]["files_not_read"] == {".md": 1}
    (data / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file in it is of a known kind; known: \.arrow, \.jsonl, \.ndjson, \.parq"):
        build(data, folder)


def test_bad_records_are_named_and_too_many_refused(folder: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.jsonl", *chats(5), "{broken", {"messages": [ASK]}, {"prompt": "\ud800", "answer": "a"})
    (source,) = build(path, folder).report["sources"]
    assert source["skipped"] == {"not JSON": 1, "not text": 1, "without an answer": 1}
    assert [example.removeprefix(f"{path}:")[:2] for example in source["skipped_examples"]] == ["6:", "7:", "8:"]
    with pytest.raises(
        DataError, match=r"more than 1 unreadable records .*\n.*:6: not valid JSON.*\n.*a.jsonl:7: no mes"
    ):
        build(path, folder, bad_line_limit=1)


def test_chats_without_a_template_are_refused(bare: Path, write_lines: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"no chat template.*chat_template\.jinja.*\"prompt\""):
        build(write_lines("a.jsonl", *chats(3)), bare)


def test_a_new_tokenizer_is_refused(folder: Path, write_lines: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"task.data.tokenizer: conversations need the tokenizer of the model"):
        build(write_lines("a.jsonl", *chats(3)), "new")  # type: ignore[arg-type]


def test_template_options_belong_to_conversations() -> None:
    with pytest.raises(ConfigError, match=r"task.data.template_options: documents have no chat template"):
        DataConfig(sources=(SourceConfig(path="x"),), template_options={"enable_thinking": False})


@pytest.mark.parametrize("count", [2, 3, 9, 40])
@pytest.mark.parametrize("fraction", [0.01, 0.49])
def test_even_little_data_has_both_sides(
    count: int, fraction: float, folder: Path, write_lines: Callable[..., Path]
) -> None:
    made = build(write_lines("a.jsonl", *chats(count)), folder, valid_fraction=fraction)
    (source,) = made.report["sources"]
    assert source["train"]["documents"] + source["valid"]["documents"] == source["records"] == count
    assert len(made.train) >= 1
    assert len(made.valid) >= 1


def test_one_conversation_cannot_be_both_sides(folder: Path, write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.jsonl", *chats(1) * 3, {"text": ""})
    with pytest.raises(
        DataError, match=r"one and the same conversation in it.*\(1 empty text\); two different.*\n.*:4:"
    ):
        build(path, folder)
    with pytest.raises(DataError, match=r"no conversation in it that can be used \(1 without an answer\)"):
        build(write_lines("b.jsonl", {"messages": [ASK]}), folder)


def test_repeated_chats_are_counted_and_stay_on_one_side(folder: Path, write_lines: Callable[..., Path]) -> None:
    records = chats(40)
    path = write_lines("a.jsonl", *records, *records[:10])
    made = build(path, folder, valid_fraction=0.4)
    (source,) = made.report["sources"]
    assert (source["records"], source["duplicates"]) == (50, 10)
    train = made.train.rows(range(len(made.train)))
    valid = made.valid.rows(range(len(made.valid)))
    sides = [
        {tuple(tokens[documents == n].tolist()) for tokens, _, documents in zip(*rows, strict=True) for n in range(20)}
        for rows in (train, valid)
    ]
    assert sides[0] & sides[1] == {()}


def test_a_second_run_starts_at_once_and_damage_is_repaired(
    folder: Path, cache: Path, write_lines: Callable[..., Path]
) -> None:
    path = write_lines("a.jsonl", *chats(20))
    first = build(path, folder)

    def stages(**settings: Any) -> list[str]:
        told: list[str] = []
        made = build(path, folder, progress=lambda stage, share: told.append(stage), **settings)
        assert made.fingerprint == first.fingerprint or settings
        return told

    assert stages() == []
    (found,) = cache.glob("conversations/*/content/learned-00000.bin")
    found.write_bytes(found.read_bytes()[:-1])
    assert stages()
    assert stages(sequence_length=65)
    assert stages(valid_fraction=0.3)
    assert stages(template_options={"brief": True})
    (folder / "chat_template.jinja").write_text(CHATML.replace("brief.", "quick."))
    try:
        assert stages(seed=1)
    finally:
        (folder / "chat_template.jinja").write_text(CHATML)


def test_rows_follow_seed_weights_and_phases(folder: Path, write_lines: Callable[..., Path]) -> None:
    paths = [write_lines(f"{name}.jsonl", *chats(30, seed=name)) for name in (1, 2)]
    sources = tuple(SourceConfig(path=str(path), weight=weight) for path, weight in zip(paths, (3, 1), strict=True))
    settings: dict[str, Any] = {
        "sources": sources,
        "rows_total": 400,
        "phases": (PhaseConfig(start=0.5, weights=(0, 1)),),
    }
    first, again, other = (build(paths[0], folder, seed=seed, **settings) for seed in (5, 5, 6))
    assert torch.equal(first.train.rows(range(40)).tokens, again.train.rows(range(40)).tokens)
    assert not torch.equal(first.train.rows(range(40)).tokens, other.train.rows(range(40)).tokens)
    assert [round(one["share"], 2) for one in first.report["sources"]] == pytest.approx([0.375, 0.625], abs=0.05)
    with pytest.raises(ConfigError, match=r"task\.data\.max_repeats"):
        build(paths[0], folder, max_repeats=2, **settings)


def test_evaluation_sees_learned_tokens_only(folder: Path, write_lines: Callable[..., Path]) -> None:
    made = build(write_lines("a.jsonl", *chats(30)), folder, valid_fraction=0.3)
    model = tiny_models.make("dense", vocab_size=400)
    found = measure(model, made.valid, 1000, 4, torch.from_numpy(made.tokenizer.token_bytes))
    assert found["tokens"] == made.report["sources"][0]["valid"]["learned"]
    rows = made.valid.rows(range(len(made.valid)))
    text = made.tokenizer.decode(rows.targets[rows.targets != NO_TARGET].tolist())
    assert found["bytes"] == len(text.encode())


@pytest.mark.full
def test_a_run_learns_from_conversations_and_is_evaluated_on_them(
    folder: Path, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    run = micro_runs.narrow(write_lines("a.jsonl", *chats(60)))()
    data = replace(run.task.data, form="conversations", tokenizer=str(folder))
    run = replace(run, model=replace(run.model, vocab_size=400), task=replace(run.task, data=data, sequence_length=128))
    place = seqloom.train(run, tmp_path / "run")
    last = [record for record in read_metrics(place.metrics_path) if record["kind"] == "valid"][-1]
    again = evaluate(place.path, rows=run.task.evaluate_rows)
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert again["tokens"] == json.loads((place.path / "data.json").read_text())["sources"][0]["valid"]["learned"]
    other = write_lines("b.jsonl", *chats(3, seed=9))
    measured = evaluate(place.path, (SourceConfig(path=str(other)),))
    answers = [message["content"] for chat in chats(3, seed=9) for message in chat["messages"][1::2]]
    assert measured["bytes"] == len("".join(answers))


def test_the_report_tells_all_of_it(folder: Path, write_lines: Callable[..., Path]) -> None:
    long = {"messages": [ASK, {"role": "assistant", "content": "width " * 150}]}
    records = chats(20)
    made = build(write_lines("a.jsonl", *records, records[0], long, {"a": 1}), folder, sequence_length=128)
    (source,) = made.report["sources"]
    assert json.loads(json.dumps(made.report)) == made.report
    lines = report_lines(made.report)
    text = "\n".join(lines)
    for expected in (
        "22 conversations (1 of them repeated), ",
        f"learned: {source['learned']:,} tokens, {source['learned'] / source['tokens']:.1%} of all",
        f"held back: {source['valid']['documents']} sequences, ",
        f"packed into {source['rows']} rows of 128 tokens, {source['padding']:.1%} padding",
        f"30 of {source['rows']} rows ({30 / source['rows']:.2f} times)",
        "longest sequence: 128 tokens; 1 cut to fit a row, ",
        "left out: 1 of no known shape",
        "a.jsonl:23: keys here: a; known: ",
        "first training row (between « and » what is read, but not learned):",
        "       0 | «<|im_start|>user",
    ):
        assert expected in text
    assert source["learned"] == sum(
        int((rows.targets != NO_TARGET).sum()) for rows in [made.every.rows(range(len(made.every)))]
    )
    example = made.report["example"]
    assert {span["target"] for span in example} == {True, False}
    assert all(
        span["text"].lstrip().startswith("<|im_start|>") or span["text"] == "\n"
        for span in example
        if not span["target"]
    )
    assert all("user" not in span["text"] for span in example if span["target"])


def test_a_long_example_is_shortened_on_a_terminal(folder: Path, write_lines: Callable[..., Path]) -> None:
    lines = report_lines(build(write_lines("a.jsonl", *chats(200)), folder, sequence_length=2000).report)
    assert "lines more" in lines[-1]
    assert len(lines) < 80
