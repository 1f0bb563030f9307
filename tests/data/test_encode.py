"""The second pass: from documents to two token streams."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_texts import CODE, PROSE

from seqloom.core.errors import DataError
from seqloom.data.encode import INDEX, Store, encode, read_store
from seqloom.data.shards import TokenStream
from seqloom.data.sources import Source, open_source
from seqloom.data.survey import survey
from seqloom.data.tokenizer import TextTokenizer


def quiet(stage: str, share: float) -> None:
    pass


def store(path: Path, tokenizer: TextTokenizer, folder: Path, fraction: float = 0.2) -> Store:
    source = open_source(str(path), "text")
    folder.mkdir(exist_ok=True)
    encode(source, survey(source, 100, 0, quiet), tokenizer, fraction, folder, quiet)
    found = read_store(folder)
    assert found is not None
    return found


def documents(stream: TokenStream, tokenizer: TextTokenizer) -> list[str]:
    """The texts of a stream, after checking that each has its marks and borders."""
    ids, owners = stream.read(0, stream.tokens), stream.document_of(0, stream.tokens)
    texts = []
    for number in range(stream.documents):
        found = ids[owners == number].tolist()
        assert (found[0], found[-1]) == (tokenizer.bos, tokenizer.eos)
        texts.append(tokenizer.decode(found[1:-1]))
    return texts


def test_every_document_is_on_one_side_with_its_marks(stories: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    found = store(stories, tokenizer, tmp_path / "s")
    sides = [documents(stream, tokenizer) for stream in (found.train, found.valid)]
    texts = [json.loads(line)["text"] for line in stories.read_text().splitlines()]
    assert sorted(sides[0] + sides[1]) == sorted(texts)
    assert not set(sides[0]) & set(sides[1])
    for stream, side in zip((found.train, found.valid), sides, strict=True):
        assert (
            stream.n_bytes
            == sum(len(text.encode()) for text in side)
            == tokenizer.token_bytes[stream.read(0, 1 << 30)].sum()
        )


def test_duplicates_stay_on_one_side(
    write_lines: Callable[..., Path], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path = write_lines("a.jsonl", *({"text": "word " * (number % 5 + 1)} for number in range(50)))
    found = store(path, tokenizer, tmp_path / "s")
    train, valid = documents(found.train, tokenizer), documents(found.valid, tokenizer)
    assert len(train) + len(valid) == 50
    assert train
    assert valid
    assert not set(train) & set(valid)


@pytest.mark.parametrize("repeat", [1, 30, 3000])
def test_a_single_document_gives_its_tail(repeat: int, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    text = (CODE + PROSE + "é") * repeat
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    found = store(path, tokenizer, tmp_path / "s")
    (train,), (valid,) = documents(found.train, tokenizer), documents(found.valid, tokenizer)
    assert train + valid == text
    assert 0.1 < found.valid.n_bytes / len(text.encode()) < 0.45
    assert found.facts["documents"] == 1


def test_equal_documents_give_their_tail(
    write_lines: Callable[..., Path], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    found = store(write_lines("a.jsonl", *[{"text": CODE}] * 10), tokenizer, tmp_path / "s")
    texts = documents(found.train, tokenizer) + documents(found.valid, tokenizer)
    assert "".join(texts) == CODE * 10
    assert found.train.documents >= 7
    assert found.valid.documents >= 2


def test_one_letter_is_enough_not_to_fail(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    found = store(tmp_path / "a.txt", tokenizer, tmp_path / "s")
    assert documents(found.train, tokenizer) + documents(found.valid, tokenizer) == ["x", ""]


def test_a_long_document_is_encoded_as_if_in_one_piece(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    text = (CODE + PROSE) * 3000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(PROSE)
    found = store(tmp_path, tokenizer, tmp_path / "s")
    assert found.train.read(0, 1 << 30).tolist() == [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]


def test_a_tokenizer_without_a_begin_mark(stories: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    plain = TextTokenizer((tmp_path / "tokenizer.json").read_text(), bos=None, eos=2, pad=None)
    found = store(stories, plain, tmp_path / "s")
    assert found.train.read(0, 1)[0] not in (1, 2)
    assert (found.train.read(0, 1 << 30) == 2).sum() == found.train.documents


def test_a_source_that_changes_meanwhile_is_noticed(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(PROSE)
    source = open_source(str(path), "text")
    before = survey(source, 100, 0, quiet)
    path.write_text(PROSE * 2)
    with pytest.raises(DataError, match=f"{path}: changed while it was read"):
        encode(source, before, tokenizer, 0.2, tmp_path, quiet)


@pytest.mark.parametrize("name", ["train-00000.bin", "valid.offsets", INDEX])
def test_damage_is_noticed(name: str, stories: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store(stories, tokenizer, folder)
    path, content = folder / name, (folder / name).read_bytes()
    path.write_bytes(content[:-2])
    assert read_store(folder) is None
    path.unlink()
    assert read_store(folder) is None


def test_a_changed_index_is_noticed(stories: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    store(stories, tokenizer, tmp_path / "s")
    path = tmp_path / "s" / INDEX
    path.write_text(path.read_text().replace('"documents": 1', '"documents": 2', 1))
    assert read_store(tmp_path / "s") is None


def test_reading_is_lazy(
    monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer, stories: Path, tmp_path: Path
) -> None:
    """No more than a batch of pieces is taken from the source before it is written."""
    held: list[int] = []
    monkeypatch.setattr("seqloom.data.documents.BATCH_CHARS", 1000)
    taken = 0
    real = Source.pieces

    def counted(self: Source, reading: object) -> object:
        nonlocal taken
        for piece in real(self, reading):  # type: ignore[arg-type]
            taken += len(piece.text)
            yield piece

    inner = TextTokenizer.encode_batch

    def encode_batch(self: TextTokenizer, texts: list[str]) -> list[list[int]]:
        nonlocal taken
        held.append(taken)
        taken = 0
        return inner(self, texts)

    monkeypatch.setattr(Source, "pieces", counted)
    monkeypatch.setattr(TextTokenizer, "encode_batch", encode_batch)
    source = open_source(str(stories), "text")
    before = survey(source, 0, 0, quiet)
    taken = 0
    encode(source, before, tokenizer, 0.2, tmp_path, quiet)
    assert len(held) > 5
    assert max(held) < 3000
