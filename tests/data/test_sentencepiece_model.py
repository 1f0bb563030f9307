"""Converted sentencepiece models; sentencepiece itself is the oracle."""

import sys
from pathlib import Path
from typing import Any

import pytest
from sample_texts import CODE, PROSE

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.tokenizer import open_tokenizer

TEXT = [line for line in (CODE + PROSE).splitlines() if line.strip()] * 40 + ["naïve 東京", "l'été"] * 5


def train(folder: Path, **settings: Any) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    settings = {"vocab_size": 120, "character_coverage": 1.0, "hard_vocab_limit": False, **settings}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(folder / "m"), minloglevel=2, **settings
    )
    return folder / "m.model"


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unigram"},
        {"model_type": "unigram", "byte_fallback": True, "vocab_size": 380, "pad_id": 3},
        {"model_type": "bpe"},
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "vocab_size": 380,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["<sep>"],
        },
    ],
)
def test_a_converted_model_gives_the_same_ids_and_texts(settings: dict[str, Any], tmp_path: Path) -> None:
    path = train(tmp_path, **settings)
    oracle = __import__("sentencepiece").SentencePieceProcessor(model_file=str(path))
    ours = open_tokenizer(path)
    for text in [*set(TEXT), "  two  spaces, 2024\n\tand 🙂 more ", "<sep> a<sep>"]:
        assert ours.encode(text) == oracle.encode(text), text
        known = [index for index in oracle.encode(text) if index != oracle.unk_id()]
        assert ours.decode(known) == oracle.decode(known)
    assert not {1, 2} & set(ours.encode("a</s>b <s><0x41>"))
    assert ours.size == oracle.vocab_size()
    assert (ours.bos, ours.eos, ours.pad) == (1, 2, 3 if "pad_id" in settings else 2)


def test_bytes_of_a_converted_model_add_up(tmp_path: Path) -> None:
    ours = open_tokenizer(train(tmp_path, model_type="bpe", byte_fallback=True, vocab_size=380))
    text = "naïve 東京 🙂, the rectangle"
    assert ours.token_bytes[ours.encode(text)].sum() == len(f" {text}".encode())


def test_a_converted_model_in_a_folder_saves_for_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    train(tmp_path, model_type="bpe").rename(tmp_path / "tokenizer.model")
    ours = open_tokenizer(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    ours.save(saved)
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert theirs.encode(PROSE, add_special_tokens=False) == ours.encode(PROSE)


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "m.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"m.model: not a sentencepiece model"):
        open_tokenizer(tmp_path / "m.model")
    with pytest.raises(DataError, match="only unigram and BPE models can be used"):
        open_tokenizer(train(tmp_path, model_type="char"))
    with pytest.raises(DataError, match="no token that ends a document"):
        open_tokenizer(train(tmp_path, eos_id=-1))


def test_a_conversion_that_is_not_exact_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = train(tmp_path, model_type="bpe")
    monkeypatch.setattr("seqloom.data.sentencepiece_model._merges", lambda pieces: [])
    with pytest.raises(
        DataError, match=r"cannot be converted exactly: .* is .* in sentencepiece and .* after conversion"
    ):
        open_tokenizer(path)


def test_a_model_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.model").touch()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"seqloom\[data\]"):
        open_tokenizer(tmp_path / "m.model")
