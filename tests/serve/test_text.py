import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seqloom.serve.text import Detokenizer, StopStrings

SAMPLE = "naïve café – 日本語テキスト 😀👩‍👩‍👧 straße def f(x):\n    return x\n\tΩ≈ç√ " * 3


class Wrapped:
    """A `tokenizers` object under the engine's contract."""

    bos, eos = 0, 1

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner
        self.size = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids))


class Bytes:
    """A token is any run of bytes, as a byte-level vocabulary might hold."""

    bos, eos, size = 0, 1, 0

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def encode(self, text: str) -> list[int]:
        raise AssertionError

    def token(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[index] for index in ids).decode("utf-8", errors="replace")


def byte_level() -> Wrapped:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return Wrapped(tokenizer)


def sentence_pieces() -> Wrapped:
    """Word pieces with a space mark and byte fallback, as in sentencepiece vocabularies."""
    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += list("abcdefghijklmnopqrstuvwxyz():=\n")
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, "▁d", "▁r", "tu"]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "d"), ("▁", "r"), ("t", "u")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return Wrapped(tokenizer)


def cut(whole, sizes: Sequence[int], choose: random.Random) -> list:
    pieces = []
    while whole:
        size = choose.choice(sizes)
        pieces.append(whole[:size])
        whole = whole[size:]
    return pieces


def pieces_of(tokenizer: object, ids: list[int], before: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, before or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize(
    ("make", "cut"),
    [(byte_level, cut) for cut in (0, 1, 2, 3, 5, 9, 20, 33)] + [(sentence_pieces, cut) for cut in (0, 1, 2, 3, 8, 10)],
)
def test_pieces_joined_are_the_whole_text(make, cut: int) -> None:
    tokenizer = make()
    ids = [tokenizer.bos, *tokenizer.encode(SAMPLE)]
    pieces = pieces_of(tokenizer, ids[cut:], before=ids[:cut])
    shown = "".join(pieces)
    assert tokenizer.decode(ids) == SAMPLE
    assert SAMPLE.endswith(shown)
    assert all("\ufffd" not in piece for piece in pieces)
    already = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
    assert already + shown == SAMPLE


def test_any_bytes_in_any_cut_give_the_text_of_all_bytes() -> None:
    """Characters of every length, broken ones and stray bytes, cut into tokens at random."""
    parts = ["a", "é", "語", "😀", "\ufffd"]
    stray = [b"\x80", b"\xe2", b"\xf0\x9f", b"\xed\xa0\x80", b"\xff", b"\xf0\x9f\x98", b"\xe2\x82"]
    for seed in range(300):
        choose = random.Random(seed)
        data = b"".join(
            choose.choice(parts).encode() if choose.random() < choose.choice([0.2, 0.95]) else choose.choice(stray)
            for _ in range(60)
        )
        tokenizer = Bytes()
        ids = [tokenizer.token(piece) for piece in cut(data, [1, 1, 1, 2, 3, 7], choose)]
        whole, shown = tokenizer.decode(ids), "".join(pieces_of(tokenizer, ids))
        assert whole.startswith(shown), seed
        assert whole.rstrip("\ufffd") == shown.rstrip("\ufffd"), seed


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    tokenizer = Bytes()
    ids = [tokenizer.token(piece) for piece in (b"a", b"\xf0\x9f", b"\x98", b"\x80 \xe2", b"\x82\xac", b"\xe2")]
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "😀 €", "", ""]


@pytest.mark.parametrize(("piece", "text"), [(b"\x80", "\ufffd" * 499), (b"", "")], ids=["broken", "without text"])
def test_endless_tokens_of_no_use_need_bounded_work(piece: bytes, text: str) -> None:
    tokenizer = Bytes()
    token, longest = tokenizer.token(piece), 0
    decode = tokenizer.decode

    def counted(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    tokenizer.decode = counted
    shown = "".join(pieces_of(tokenizer, [token] * 500))
    assert shown == text
    assert longest < 20


def through(stop: tuple[str, ...], pieces: Sequence[str]) -> tuple[list[str], bool]:
    strings = StopStrings(stop)
    shown = [strings.push(piece) for piece in pieces]
    return [*shown, strings.flush()], strings.stopped


def test_text_is_held_while_it_could_become_a_stop_string() -> None:
    assert through(("END",), ["a E", "N", "x E", "ND", " more"]) == (["a ", "", "ENx ", "", "", ""], True)
    assert through(("END",), ["so EN"]) == (["so ", "EN"], False)
    assert through((), ["as", " is"]) == (["as", " is", ""], False)


def test_a_stop_string_that_begins_inside_another_try() -> None:
    assert through(("aab",), list("aaab!")) == (["", "", "a", "", "", ""], True)


def test_the_cut_text_does_not_depend_on_the_pieces() -> None:
    for seed in range(300):
        choose = random.Random(seed)
        text = "".join(choose.choices("ab", k=40))
        stop = tuple("".join(choose.choices("ab", k=choose.randint(2, 6))) for _ in range(3))
        ends = [index for index in range(1, 41) if any(text[:index].endswith(s) for s in stop)]
        expected = text
        if ends:  # the definition, letter by letter
            expected = text[: ends[0] - max(len(s) for s in stop if text[: ends[0]].endswith(s))]
        shown, stopped = through(stop, cut(text, range(1, 10), choose))
        assert ("".join(shown), stopped) == (expected, bool(ends)), seed
