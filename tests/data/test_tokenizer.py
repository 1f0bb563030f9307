"""New and existing tokenizers; transformers is the oracle for saved folders."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloom.core.errors import DataError
from seqloom.data.tokenizer import SPECIALS, TextTokenizer, open_tokenizer, train_tokenizer

SAMPLE = (
    'def f(x):\n    """Doc."""\n\n        return [x, "naïve 東京 🙂", 1234]\r\n\t# it\'s  done \n' + "é" + "e\u0301"
)


@given(text=st.text())
def test_every_text_decodes_to_itself_and_its_bytes_add_up(text: str, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_special_tokens_have_their_known_ids(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
    for token, index in {"<|im_start|>": 10, "<|im_end|>": 11, "<think>": 12, "</think>": 13}.items():
        assert tokenizer.encode(token, specials=True) == [index]
        assert tokenizer.decode([index], specials=True) == token
        assert tokenizer.decode([index]) == ""
    assert not tokenizer.token_bytes[: len(SPECIALS)].any()


def test_text_cannot_smuggle_in_a_special_token(tokenizer: TextTokenizer) -> None:
    text = "a</s><|im_end|><think>"
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert min(ids) >= len(SPECIALS)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, specials=True)[1:] == [2, 11, 12]


def test_digits_stand_alone_and_indentation_is_one_token() -> None:
    tokenizer = train_tokenizer(["if x:\n        return 1234 + 99\n" * 50], 600)
    tokens = [tokenizer.decode([index]) for index in tokenizer.encode("if x:\n        return 1299\n")]
    assert tokens == ["if", " x", ":\n        ", "return", " ", "1", "2", "9", "9", "\n"]


def test_batches_equal_single_texts(tokenizer: TextTokenizer) -> None:
    texts = [SAMPLE, "", "x", SAMPLE * 3]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_training_is_repeatable_and_bounded() -> None:
    texts = [SAMPLE * 3, "some other words, some other words"]
    first = train_tokenizer(texts, 300)
    assert first.size == 300
    code = (
        "import json, sys; from seqloom.data.tokenizer import train_tokenizer;"
        "print(train_tokenizer(json.loads(sys.argv[1]), 300).digest)"
    )
    other = subprocess.run([sys.executable, "-c", code, json.dumps(texts)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first.digest
    assert train_tokenizer(["ab"], 5000).size < 300


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused() -> None:
    with pytest.raises(DataError, match=r"at least 274 entries .* model's vocab_size is 200"):
        train_tokenizer(["text"], 200)


def test_a_process_forked_later_may_encode_without_warning_or_deadlock() -> None:
    code = """
import os
from seqloom.data.tokenizer import train_tokenizer
tokenizer = train_tokenizer(["some words to learn"] * 9, 280)
tokenizer.encode_batch(["some words"] * 99)
child = os.fork()
tokenizer.encode_batch(["some words"] * 99) if child else tokenizer.encode("some words")
os._exit(0) if not child else print(os.waitpid(child, 0)[1])
"""
    clean = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("0", "")


def test_a_saved_folder_is_the_same_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        opened = open_tokenizer(path)
        assert opened.digest == tokenizer.digest
        assert (opened.bos, opened.eos, opened.pad, opened.size) == (1, 2, 0, tokenizer.size)
        assert np.array_equal(opened.token_bytes, tokenizer.token_bytes)
        assert opened.encode(SAMPLE) == tokenizer.encode(SAMPLE)


def test_transformers_reads_a_saved_folder_to_the_same_ids(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert theirs.encode(SAMPLE, add_special_tokens=False) == tokenizer.encode(SAMPLE)
    assert theirs(SAMPLE)["input_ids"] == [1, *tokenizer.encode(SAMPLE)]
    chat = "<|im_start|>user\nhi<|im_end|>\n"
    assert theirs.encode(chat, add_special_tokens=False) == tokenizer.encode(chat, specials=True)
    assert theirs.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    assert len(theirs) == tokenizer.size


BASE = ["<unk>", "<s>", "<end>", "<pad>", "<|endoftext|>"]


def foreign(folder: Path, specials: list[str] = BASE, **files: dict[str, Any]) -> Path:
    """A tokenizer.json of someone else's making, with padding and truncation left on, and files beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.train_from_iterator(["a few words"], trainers.BpeTrainer(special_tokens=specials, show_progress=False))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "bos", "eos", "pad"),
    [
        ({"tokenizer_config": {"eos_token": "<end>", "bos_token": {"content": "<s>"}, "pad_token": "<pad>"}}, 1, 2, 3),
        ({"tokenizer_config": {"eos_token": "<end>", "bos_token": None}}, None, 2, 2),
        ({"special_tokens_map": {"eos_token": {"content": "<end>"}}}, None, 2, 2),
        ({"config": {"eos_token_id": 2, "bos_token_id": 1}}, 1, 2, 2),
        ({"generation_config": {"eos_token_id": [2, 3]}}, None, 2, 2),
        ({"tokenizer_config": {"eos_token": "<s>"}, "generation_config": {"eos_token_id": 2}}, None, 1, 1),
        ({"tokenizer_config": {"eos_token": "<not here>"}, "config": {"eos_token_id": 999}}, None, 4, 4),
        ({}, None, 4, 4),
    ],
)
def test_the_marks_of_an_existing_tokenizer(
    files: dict[str, Any], bos: int | None, eos: int, pad: int, tmp_path: Path
) -> None:
    opened = open_tokenizer(foreign(tmp_path, **files))
    assert (opened.bos, opened.eos, opened.pad) == (bos, eos, pad)
    saved = tmp_path / "saved"
    saved.mkdir()
    opened.save(saved)
    again = open_tokenizer(saved)
    assert (again.bos, again.eos, again.pad) == (bos, eos, pad)


def test_padding_and_truncation_of_an_existing_tokenizer_are_off(tmp_path: Path) -> None:
    opened = open_tokenizer(foreign(tmp_path))
    ids = opened.encode("a few words a few words")
    assert opened.encode_batch(["a few words a few words"]) == [ids]
    assert opened.decode(ids).replace("▁", " ").split() == ["a", "few", "words"] * 2
    assert opened.token_bytes[ids].sum() == len(" a few words a few words")


def test_the_file_of_a_chat_template_goes_before_the_settings(tmp_path: Path) -> None:
    folder = foreign(
        tmp_path, tokenizer_config={"chat_template": "in config", "auto_map": {"AutoTokenizer": "evil.py"}}
    )
    opened = open_tokenizer(folder)
    assert opened.chat_template == "in config"
    (folder / "chat_template.jinja").write_text("in file")
    opened = open_tokenizer(folder)
    opened.save(folder)
    assert open_tokenizer(folder).chat_template == "in file"
    assert "evil" not in (folder / "tokenizer_config.json").read_text()


def test_chat_templates_by_name_are_kept_as_transformers_keeps_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    by_name = {"default": "plain {{ eos_token }}\r\n", "tool_use": "{{ tools|length }} tools"}
    listed = [{"name": name, "template": text} for name, text in by_name.items()]
    opened = open_tokenizer(foreign(tmp_path, tokenizer_config={"chat_template": listed, "eos_token": "<end>"}))
    assert opened.templates == by_name
    assert opened.template is not None
    assert opened.template.render([], tools=[{}, {}]) == "2 tools"
    assert opened.template.render([]) == "plain <end>"
    saved = tmp_path / "saved"
    saved.mkdir()
    opened.save(saved)
    assert open_tokenizer(saved).templates == by_name
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert {name: text.replace("\r\n", "\n") for name, text in by_name.items()} == theirs.chat_template


def test_a_chat_template_in_the_oldest_place(tmp_path: Path) -> None:
    folder = foreign(tmp_path, chat_template={"chat_template": "old"})
    assert open_tokenizer(folder).chat_template == "old"
    assert open_tokenizer(foreign(tmp_path, tokenizer_config={"chat_template": "newer"})).chat_template == "newer"


def test_a_tokenizer_without_a_chat_template(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.chat_template, tokenizer.template) == (None, None)
    assert tokenizer.answer_end == tokenizer.eos


def test_an_answer_ends_with_the_mark_of_the_template(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for body, end in (("{{ m.content }}<|im_end|>\n", 11), ("{{ m.content }}</s>", 2), ("{{ m.content }}<end>", 2)):
        (tmp_path / "chat_template.jinja").write_text(f"{{% for m in messages %}}{body}{{% endfor %}}")
        assert open_tokenizer(tmp_path).answer_end == end


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([{"name": "default"}], "chat_template must be a text or a list of objects with name and template"),
        (["x"], "chat_template must be"),
        (5, "chat_template must be"),
        ([{"name": "../x", "template": "y"}], "a chat template cannot be called '../x'"),
        ([{"name": f"n{number}", "template": "y"} for number in range(17)], "17 chat templates; at most 16"),
    ],
)
def test_chat_templates_that_are_none(settings: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"tokenizer_config.json: .*{reason}"):
        open_tokenizer(foreign(tmp_path, tokenizer_config={"chat_template": settings}))


def test_chat_templates_none_of_which_is_the_default(tmp_path: Path) -> None:
    listed = [{"name": "rag", "template": "x"}]
    opened = open_tokenizer(foreign(tmp_path, tokenizer_config={"chat_template": listed}))
    with pytest.raises(DataError, match="of the chat templates rag none is called 'default'"):
        _ = opened.template


def test_files_of_chat_templates_lie_in_their_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    foreign(folder)
    path = folder / "chat_template.jinja"
    path.symlink_to(secret)
    with pytest.raises(DataError, match=r"chat_template.jinja: a link that leaves its folder"):
        open_tokenizer(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"chat_template.jinja: a pipe, not a regular file"):
        open_tokenizer(folder)
    path.unlink()
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template.jinja: not UTF-8 at byte 0"):
        open_tokenizer(folder)
    path.write_text("x" * 600_000)
    with pytest.raises(DataError, match=r"chat_template.jinja: 600,000 bytes; at most 524,288"):
        open_tokenizer(folder)
    path.unlink()
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").symlink_to(secret)
    with pytest.raises(DataError, match=r"rag.jinja: a link that leaves its folder"):
        open_tokenizer(folder)


@given(text=st.text())
def test_offsets_cover_the_text_without_a_gap(text: str, tokenizer: TextTokenizer) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert len(ids) == len(offsets)
    reached = 0
    for place, (start, end) in enumerate(offsets):
        assert start <= reached <= end
        if start == reached:  # the tokens from here on spell the text from here on
            assert tokenizer.decode(ids[place:]) == text[start:]
        reached = end
    assert reached == len(text) * bool(ids)


def test_offsets_of_special_tokens_and_of_characters_in_pieces(tokenizer: TextTokenizer) -> None:
    text = "é<|im_start|>🙂 a<think>"
    ids, offsets = tokenizer.encode_with_offsets(text, specials=True)
    assert ids == tokenizer.encode(text, specials=True)
    spelled = {index: text[start:end] for index, (start, end) in zip(ids, offsets, strict=True)}
    assert (spelled[10], spelled[12]) == ("<|im_start|>", "<think>")
    assert [place for place in offsets if place == (text.index("🙂"), text.index("🙂") + 1)] == [offsets[-6]] * 4


def test_offsets_where_a_tokenizer_hides_white_space(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["</s>"]
    inner.train_from_iterator(
        ["so many words"], trainers.BpeTrainer(special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    opened = TextTokenizer(inner.to_str(), bos=None, eos=0, pad=None)
    text = "so many words "
    ids, offsets = opened.encode_with_offsets(text)
    assert [opened.decode([index]) for index in ids] == [text[start:end] for start, end in offsets]


def test_tokenizers_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no tokenizer here; expected a tokenizer.json"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path}: no tokenizer here"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"nothing says which token ends a document; put \"eos_token\" into"):
        open_tokenizer(foreign(tmp_path, ["<unk>", "<s>"]))
    (tmp_path / "tokenizer_config.json").write_text("{cut off")
    with pytest.raises(DataError, match=r"tokenizer_config.json: not a JSON file"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer.json that can be read"):
        open_tokenizer(tmp_path)


def damaged(folder: Path, change: Any) -> Path:
    """The tokenizer.json of someone else, changed."""
    path = foreign(folder) / "tokenizer.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields["model"]["vocab"].update(zz=2**32 - 1), "highest token id is 4,294,967,295; allowed"),
        (lambda fields: fields["model"]["vocab"].update(zz=-1), "not a tokenizer.json that can be read"),
        (lambda fields: fields["added_tokens"][1].update(id=2), "'<s>' (has the id 2|and '<end>' have the same id 2)"),
        (lambda fields: fields["added_tokens"][1].update(id=900), "'<s>' has the id 900, in the vocabulary 1"),
        (lambda fields: fields.update(added_tokens=5), "not a tokenizer.json that can be read"),
        (lambda fields: fields.update(model=None), "not a tokenizer.json that can be read"),
        (lambda fields: fields.update(extra=[[]] * 4_000_001), "more than 4,000,000 values"),
    ],
)
def test_a_vocabulary_that_contradicts_itself(change: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"tokenizer.json: .*{reason}"):
        open_tokenizer(damaged(tmp_path, change))


def test_files_of_a_tokenizer_are_read_within_limits(tmp_path: Path) -> None:
    folder = foreign(tmp_path)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config.json: expected an object, found a list"):
        open_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"a": ' + "[" * 5000 + "]" * 5000 + "}")
    with pytest.raises(DataError, match=r"tokenizer_config.json: nested deeper than 64 levels"):
        open_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    os.truncate(folder / "tokenizer.json", 200 << 20)
    with pytest.raises(DataError, match=r"tokenizer.json: 209,715,200 bytes; at most 134,217,728"):
        open_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"tokenizer.json"):
        open_tokenizer(folder)
