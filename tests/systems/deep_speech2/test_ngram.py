"""Kneser-Ney by hand, sums of probabilities, and two ways to look a word up."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from seqloom.core.errors import ConfigError, DataError
from seqloom.systems.deep_speech2.arpa import write_arpa
from seqloom.systems.deep_speech2.ngram import BEGIN, END, ROOT, UNKNOWN, NgramModel, tokens
from seqloom.systems.deep_speech2.ngram_estimate import FALLBACK, Estimate, estimate


def _sentences(seed: int = 0, count: int = 300) -> list[list[str]]:
    draw = random.Random(seed)
    return [[f"w{min(29, int(draw.expovariate(0.15)))}" for _ in range(draw.randint(1, 9))] for _ in range(count)]


def _total(model: NgramModel, state: int) -> float:
    return sum(math.exp(model.advance(state, n)[0]) for n, word in enumerate(model.words) if word != BEGIN)


def test_a_bigram_model_by_hand() -> None:
    """Sentences "a b", "a b", "a". Bigrams: <s>a 3, ab 2, b</s> 2, a</s> 1; the words on the left of a: 1 (<s>),
    of b: 1 (a), of </s>: 2 (a, b), 4 in all. Of bigrams one occurs once, two twice, one thrice, so Y = 1/5;
    no word has three others on its left, so the discounts of words are the fallback."""
    found = estimate([["a", "b"], ["a", "b"], ["a"]], 2)
    model = found.model
    assert found.discounts[0] == FALLBACK
    assert found.discounts[1] == pytest.approx((0.2, 1.7, 3.0))
    assert found.fallbacks == (1,)
    gamma = (0.5 + 0.5 + 1) / 4  # of the empty context; the uniform share is of a, b, </s> and <unk>
    a, b, end = 0.5 / 4 + gamma / 4, 0.5 / 4 + gamma / 4, 1 / 4 + gamma / 4
    state = model.begin_state
    expected = [
        (3 - 3) / 3 + 3 / 3 * a,  # a after <s>
        (2 - 1.7) / 3 + (1.7 + 0.2) / 3 * b,  # b after a
        (2 - 1.7) / 2 + 1.7 / 2 * end,  # the end after b
    ]
    for word, probability in zip(("a", "b", END), expected, strict=True):
        log_prob, state = model.advance(state, model.number(word))
        assert math.exp(log_prob) == pytest.approx(probability, rel=1e-6)
    after_b = model.advance(ROOT, model.number("b"))[1]
    assert math.exp(model.advance(after_b, model.number("a"))[0]) == pytest.approx(1.7 / 2 * a, rel=1e-6)
    assert math.exp(model.advance(after_b, model.number("z"))[0]) == pytest.approx(1.7 / 2 * gamma / 4, rel=1e-6)


def test_discounts_follow_the_counts_of_counts() -> None:
    found = estimate(_sentences(), 2)
    counts: dict[tuple[str, str], int] = {}
    for sentence in _sentences():
        for pair in zip((BEGIN, *sentence), (*sentence, END), strict=True):
            counts[pair] = counts.get(pair, 0) + 1
    n1, n2, n3, n4 = (sum(count == k for count in counts.values()) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    assert found.discounts[1] == pytest.approx((1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3))
    assert 2 not in found.fallbacks


@pytest.mark.parametrize(
    ("order", "prune"), [(1, ()), (2, ()), (3, ()), (5, ()), (3, (0, 1)), (3, (1, 1, 2)), (2, (3,))]
)
def test_probabilities_sum_to_one_after_every_listed_history(order: int, prune: tuple[int, ...]) -> None:
    model = estimate(_sentences(), order, prune).model
    states = range(0, len(model) + 1, max(1, len(model) // 60))
    assert [_total(model, state) for state in states] == pytest.approx([1.0] * len(states), abs=2e-6)


def test_pruning_leaves_out_rare_ngrams_and_words() -> None:
    whole, pruned, words = (estimate(_sentences(), 3, prune).model for prune in ((), (0, 1), (2,)))
    assert len(pruned) < len(whole)
    assert pruned.words == whole.words
    assert set(words.words) < set(whole.words)
    assert words.perplexity(_sentences()).unknown > 0


def test_sentences_at_once_are_sentences_one_word_at_a_time() -> None:
    model = estimate(_sentences(), 4, (0, 0, 1)).model
    for sentence in [*_sentences(1, 30), ["never", "w1", "w2", "seen"], []]:
        state, expected = model.begin_state, []
        for word in (*sentence, END):
            log_prob, state = model.advance(state, model.number(word))
            expected.append(log_prob)
        assert model.log_probs(sentence) == pytest.approx(expected, abs=1e-5)
    measured = model.perplexity(_sentences(1, 30))
    nats = -np.concatenate([model.log_probs(sentence) for sentence in _sentences(1, 30)])
    assert measured.perplexity == pytest.approx(math.exp(nats.mean()))
    assert measured.tokens == len(nats)


def test_longer_histories_predict_the_training_text_better() -> None:
    scores = [estimate(_sentences(), order).model.perplexity(_sentences()).perplexity for order in (1, 2, 3)]
    assert scores == sorted(scores, reverse=True)


def test_characters_write_the_space_as_a_word() -> None:
    assert tokens(" ab  c ", "character") == ["a", "b", "<space>", "c"]
    assert tokens(" ab  c ", "word") == ["ab", "c"]
    assert UNKNOWN in estimate([tokens("ab c", "character")], 2).model.numbers


def test_mistakes_are_named() -> None:
    for order, prune, said in ((6, (), "order: 6"), (2, (0, 0, 1), "prune"), (3, (2, 1), "none below the one before")):
        with pytest.raises(ConfigError, match=said):
            estimate(_sentences(), order, prune)
    with pytest.raises(DataError, match="no text"):
        estimate([[]], 2)
    with pytest.raises(DataError, match="no words"):
        estimate([["a", "<s>"]], 2)


def test_equals_kenlm(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    found: Estimate = estimate(_sentences(), 3, (0, 0, 1))
    path = tmp_path / "x.arpa"
    write_arpa(path, found.model)
    peer = kenlm.Model(str(path))
    for sentence in _sentences(2, 20):
        ours = found.model.log_probs(sentence).sum() / math.log(10)
        assert ours == pytest.approx(peer.score(" ".join(sentence)), abs=1e-3)
