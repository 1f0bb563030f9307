"""Error reports, against jiwer where it counts the same."""

import json

import pytest

from seqloom.systems.deep_speech2.error_report import Said, error_report, side_by_side, to_data, to_text

SAID = [
    Said("one", "go to the end", "go to a the and"),
    Said("two", "turn left", "turn left"),
    Said("three", "go on", "so"),
]


def test_counts_and_order() -> None:
    report = error_report(SAID)
    assert (report.words.substitutions, report.words.deletions, report.words.insertions) == (2, 1, 1)
    assert report.correct == 1
    assert [each.said.name for each in report.utterances] == ["three", "one", "two"]
    assert dict(report.substitutions)["end", "and"] == 1
    assert report.insertions == [("a", 1)]


def test_rates_equal_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    report = error_report(SAID)
    references, hypotheses = [one.reference for one in SAID], [one.hypothesis for one in SAID]
    assert report.words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert report.characters.rate == pytest.approx(jiwer.cer(references, hypotheses))


def test_words_stand_below_each_other() -> None:
    assert side_by_side(error_report(SAID[:1]).utterances[0].pairs) == ("go to * the END", "go to A the AND")


def test_text_and_data() -> None:
    report = error_report(SAID)
    text = to_text(report)
    assert text.startswith("WER 50.00%: 2 substitutions, 1 deletions, 1 insertions in 8\n")
    assert "1 of 3 utterances without an error" in text
    assert "  one (50%)\n    REF: go to * the END\n    HYP: go to A the AND\n" in text
    data = json.loads(json.dumps(to_data(report)))
    assert data["wer"] == 0.5
    assert data["utterances"][1]["pairs"][2] == [None, "a"]
    assert to_text(error_report([])).startswith("WER 0.00%")


def test_characters_where_there_are_no_spaces() -> None:
    report = error_report([Said("x", "你好吗", "你好马")], spaced=False)
    assert report.words.rate == pytest.approx(1 / 3)
    assert report.substitutions == [(("吗", "马"), 1)]
