import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.byte_tokens import ByteTokens

from seqloom.core.errors import ConfigError
from seqloom.serve.channels import ChannelMarks, Channels, Piece, marks_of

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
OPEN, CLOSE, CALL, END = TAGS
MARKS = dict(zip(("think_open", "think_close", "tool_open", "tool_close"), TAGS, strict=True))


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one channel as one piece."""
    out: list[Piece] = []
    for channel, text in pieces:
        if out and out[-1][0] == channel:
            out[-1] = (channel, out[-1][1] + text)
        else:
            out.append((channel, text))
    return out


def split(text: str, *, thinking: bool = False, before: str = "") -> list[Piece]:
    tokenizer = ByteTokens()
    channels = Channels(tokenizer, tokenizer.encode(before), ChannelMarks(**MARKS, starts_thinking=thinking))
    pieces = [piece for token in tokenizer.encode(text) for piece in channels.push(token)]
    return joined(pieces + channels.flush())


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("so</think>\n\nyes", True, [("reasoning", "so"), ("content", "\n\nyes")]),
        ("<think>so</think>yes", False, [("reasoning", "so"), ("content", "yes")]),
        ("\n <think>so</think>", False, [("content", "\n "), ("reasoning", "so")]),
        ("a<think>b</think>", False, [("content", "a<think>b</think>")]),
        ("a</think>b</think>", True, [("reasoning", "a"), ("content", "b</think>")]),
        ("a</think>b<think>c", True, [("reasoning", "a"), ("content", "b<think>c")]),
        (f"a{CALL}x</think>{END}b", True, [("reasoning", "a"), ("tool", f"{CALL}x</think>{END}"), ("content", "b")]),
        (f"{CALL}1{END}\n{CALL}2", False, [("tool", f"{CALL}1{END}"), ("content", "\n"), ("tool", f"{CALL}2")]),
        ("a</thin", True, [("reasoning", "a</thin")]),
        ("<thi", False, [("content", "<thi")]),
        ("a<</think>b", True, [("reasoning", "a<"), ("content", "b")]),
        ("", True, []),
    ],
)
def test_text_is_split_by_its_tags(text: str, thinking: bool, expected: list[Piece]) -> None:
    assert split(text, thinking=thinking) == expected


def test_after_a_closed_block_in_the_prompt_none_opens() -> None:
    assert split("<think>a", before="<think></think>\n\n") == [("content", "<think>a")]
    assert split("<think>a", before="<think></think>\n\nx") == [("reasoning", "a")]


def test_without_marks_everything_is_content() -> None:
    tokenizer = ByteTokens()
    channels = Channels(tokenizer, [])
    pieces = [piece for token in tokenizer.encode("<think>a</think>") for piece in channels.push(token)]
    assert joined(pieces + channels.flush()) == [("content", "<think>a</think>")]
    assert channels.thinking == 0


FRAGMENTS = st.lists(st.sampled_from([*TAGS, "<", "</", "think>", "é", "😀", " ", "\n", ".", "tool_", "call>", "a"]))


@settings(max_examples=80, deadline=None)
@given(FRAGMENTS, st.booleans(), st.integers(0, 2**32), st.booleans())
def test_pieces_do_not_depend_on_the_tokens(parts: list[str], thinking: bool, seed: int, special: bool) -> None:
    """Any bytes may share a token; tags may be tokens of their own."""
    choose = random.Random(seed)
    text = "".join(parts)
    marks = ChannelMarks(**MARKS, starts_thinking=thinking)
    tokenizer = ByteTokens(*TAGS) if special else ByteTokens()
    ids: list[int] = []
    waiting = b""
    for part in parts:
        if part in tokenizer.tags and choose.random() < 0.5:
            ids += [tokenizer.token(waiting)] * bool(waiting) + [tokenizer.tags[part]]
            waiting = b""
            continue
        for byte in part.encode():
            waiting += bytes([byte])
            if choose.random() < 0.4:
                ids.append(tokenizer.token(waiting))
                waiting = b""
    ids += [tokenizer.token(waiting)] * bool(waiting)
    channels = Channels(tokenizer, [], marks)
    shown = [piece for token in ids for piece in channels.push(token)] + channels.flush()
    assert joined(shown) == split(text, thinking=thinking)


def test_text_is_shown_as_soon_as_it_is_no_tag() -> None:
    tokenizer = ByteTokens()
    channels = Channels(tokenizer, [], ChannelMarks(**MARKS, starts_thinking=True))
    shown = [channels.push(token) for token in tokenizer.encode("a</tx")]
    assert shown == [[("reasoning", "a")], [], [], [], [("reasoning", "</tx")]]


class Writer:
    """A model that writes a text byte by byte until it is made to write something else."""

    def __init__(self, text: str, budget: int, *, special: bool = False, closing: str | None = None) -> None:
        self.tokenizer = ByteTokens(*TAGS) if special else ByteTokens()
        marks = ChannelMarks(**MARKS, starts_thinking=True, forced_close=closing)
        self.channels = Channels(self.tokenizer, [], marks, budget)
        self.forced = 0
        own = self.tokenizer.encode(text, specials=True)
        pieces: list[Piece] = []
        while own or self.channels.forced:
            if self.channels.forced:
                self.forced += 1
                token = self.channels.forced[0]
            else:
                token = own.pop(0)
            pieces += self.channels.push(token)
        self.pieces = joined(pieces + self.channels.flush())


@pytest.mark.parametrize("special", [False, True])
def test_the_budget_lets_a_sentence_end(special: bool) -> None:
    writer = Writer("0123456789 and so. More of it", 5, special=special)
    assert writer.pieces == [("reasoning", "0123456789 and so."), ("content", " More of it")]
    assert writer.channels.closed_by_budget
    assert writer.forced == (1 if special else len(CLOSE))
    assert writer.channels.thinking == 18 + writer.forced


def test_the_budget_ends_with_its_grace() -> None:
    writer = Writer("x" * 100, 5)
    assert writer.pieces == [("reasoning", "x" * 21), ("content", "x" * 79)]
    writer = Writer("x" * 3000, 1000)
    assert len(writer.pieces[0][1]) == 1100
    assert len(Writer("x" * 7000, 6000).pieces[0][1]) == 6500


def test_no_budget_closes_at_once() -> None:
    assert Writer("abc", 0).pieces == [("content", "abc")]


def test_a_natural_close_before_the_budget_is_the_only_one() -> None:
    writer = Writer("abc</think>def. " + "g" * 100, 12)
    assert writer.pieces == [("reasoning", "abc"), ("content", "def. " + "g" * 100)]
    assert not writer.channels.closed_by_budget
    assert Writer("abc</think>" + "g" * 100, 11).forced == 0


def test_a_close_that_has_begun_is_completed_and_not_repeated() -> None:
    for length in range(1, len(CLOSE)):
        text = "x" * (21 - length) + CLOSE
        writer = Writer(text[:21] + "yyy", 5)
        assert writer.pieces == [("reasoning", "x" * (21 - length)), ("content", "yyy")], length
        assert writer.forced == len(CLOSE) - length


def test_a_tool_call_is_never_cut() -> None:
    """Wherever the budget falls, the call stays whole; the thinking is closed before it or not at all."""
    call = f"{CALL}\n<function=f>\nfirst. second.\n</function>\n{END}"
    for budget in range(1, 60):
        for special in (False, True):
            pieces = Writer("thought " + call + " and then. more", budget, special=special).pieces
            assert ("tool", call) in pieces, (budget, pieces)
            assert pieces[0][0] == "reasoning"
            assert pieces[-1][0] == "content"


def test_a_half_written_tag_is_not_waited_for_forever() -> None:
    writer = Writer("<to" * 100, 5)
    assert writer.channels.closed_by_budget
    assert writer.channels.thinking < 21 + len(CALL) + len(CLOSE) + 1


@pytest.mark.parametrize("special", [False, True])
def test_a_closing_text_of_its_own_is_written_whole(special: bool) -> None:
    writer = Writer("x" * 30, 5, special=special, closing="</think>\n\nAnswer: ")
    assert writer.pieces == [("reasoning", "x" * 21), ("content", "\n\nAnswer: " + "x" * 9)]
    writer = Writer("x" * 30, 5, special=special, closing=" Time is up.\n</think>\n")
    assert writer.pieces == [("reasoning", "x" * 21 + " Time is up.\n"), ("content", "\n" + "x" * 9)]


def test_a_budget_in_the_middle_of_a_character_does_no_harm() -> None:
    for budget in range(1, 9):
        pieces = Writer("😀" * 12, budget).pieces
        assert [channel for channel, _ in pieces] == ["reasoning", "content"]


def test_a_budget_of_zero_keeps_the_model_from_opening() -> None:
    tokenizer = ByteTokens()
    assert not Channels(tokenizer, [], ChannelMarks(**MARKS), 0).may_open
    assert Channels(tokenizer, [], ChannelMarks(**MARKS), 1).may_open


@pytest.mark.parametrize(
    "wrong",
    [
        {"think_open": OPEN},
        {"tool_close": END},
        {"think_open": OPEN, "think_close": " </think>"},
        {"think_open": "", "think_close": CLOSE},
        {"starts_thinking": True},
        {**MARKS, "forced_close": "stop"},
    ],
)
def test_marks_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="marks"):
        ChannelMarks(**wrong)


def test_marks_come_from_the_template_and_the_prompt() -> None:
    template = "{% if tools %}<tool_call>{% endif %}<think>\n</think>"
    marks = marks_of(template, "user\nassistant\n<think>\n", tools=True)
    assert marks == ChannelMarks(**MARKS, starts_thinking=True)
    assert marks_of(template, "user", tools=False) == ChannelMarks(think_open=OPEN, think_close=CLOSE)
    assert marks_of("{{ messages }}", "<think>", tools=True) == ChannelMarks()
