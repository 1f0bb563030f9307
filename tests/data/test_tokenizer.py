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


def test_a_chat_template_is_kept(tmp_path: Path) -> None:
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


def test_tokenizers_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no tokenizer here; expected a tokenizer.json"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path}: no tokenizer here"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"nothing says which token ends a document; put \"eos_token\" into"):
        open_tokenizer(foreign(tmp_path, ["<unk>", "<s>"]))
    (tmp_path / "tokenizer_config.json").write_text("{cut off")
    with pytest.raises(DataError, match=r"tokenizer_config.json: cannot be read"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer.json that can be read"):
        open_tokenizer(tmp_path)
