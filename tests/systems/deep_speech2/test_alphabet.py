"""What outputs spell, and texts as they are spoken."""

import pytest

from seqloom.core.errors import CheckpointError, ConfigError, DataError
from seqloom.systems.deep_speech2.alphabet import ALPHABET, ENGLISH, Alphabet, build_alphabet, english

TEXTS = ["the cat sat", "the hat", "what"]


def test_characters_round_trip_and_strangers_are_listed():
    alphabet = build_alphabet("characters", TEXTS, 29)
    assert alphabet.symbols == ENGLISH
    assert alphabet.decode(alphabet.encode("it's a cat")) == "it's a cat"
    with pytest.raises(DataError, match="outside the alphabet: '!', 'é'"):
        alphabet.encode("café!")


def test_bigrams_are_cut_inside_words_without_overlap():
    alphabet = build_alphabet("bigrams", TEXTS, 34)
    cut = [alphabet.symbols[index] for index in alphabet.encode("the cat sat")]
    assert cut == ["th", "e", " ", "ca", "t", " ", "sa", "t"]
    assert [alphabet.symbols[index] for index in alphabet.encode("zoo")] == ["z", "o", "o"]
    assert alphabet.decode(alphabet.encode("what the zoo")) == "what the zoo"


def test_found_characters_are_the_most_frequent_and_spare_outputs_spell_nothing():
    alphabet = build_alphabet("found", ["你好", "你们好", "你"], 4)
    assert set(alphabet.symbols) == {"", "你", "好", "们"}
    assert alphabet.outside("你我") == {"我"}
    spare = build_alphabet("found", ["你"], 4)
    assert spare.symbols == ("", "你", "", "")
    assert spare.decode([0, 1, 2, 3]) == "你"
    assert build_alphabet("found", ["aab"], 2).symbols == ("", "a")


def test_too_few_outputs_are_refused():
    with pytest.raises(ConfigError, match=r"model\.vocab_size: 20"):
        build_alphabet("characters", TEXTS, 20)


def test_greedy_merges_repeats_unless_a_blank_lies_between():
    alphabet = Alphabet(("", "a", "b"))
    assert alphabet.greedy([1, 1, 0, 1, 2, 2, 0, 0]) == "aab"
    assert alphabet.greedy([]) == ""


def test_alphabets_are_stored_and_read_strictly(tmp_path):
    alphabet = build_alphabet("bigrams", TEXTS, 40)
    alphabet.write(tmp_path)
    assert Alphabet.read(tmp_path) == alphabet
    for text, reason in [('{"symbols": ["a", "b"]}', "first of them empty"), ('{"symbols": ["", "a", "a"]}', "twice"),
                         ('{"symbols": ["", 7]}', "list of texts"), ("{}", "list of texts")]:  # fmt: skip
        (tmp_path / ALPHABET).write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            Alphabet.read(tmp_path)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Don’t  STOP, please!", "don't stop please"),
        ("It cost 1,250 pounds", "it cost one thousand two hundred fifty pounds"),
        ("room 007, A17", "room zero zero seven a seventeen"),
        ("naïve café", "naive cafe"),
        ("'quoted' -- ' well_known", "'quoted' well known"),
        ("2000000 and 40", "two million and forty"),
    ],
)
def test_english_is_written_as_it_is_spoken(written, spoken):
    assert english(written) == spoken
