"""Pages are whole, need nothing from elsewhere, and let no text become markup."""

import math
import re
from html.parser import HTMLParser

import pytest

from seqloom.core import page
from seqloom.core.charts import HeatMap, Line, LineChart, Point
from seqloom.core.svg import describe, svg_lines, svg_strip

VOID = {"meta", "input", "br", "wbr", "link", "img"}
HOSTILE = "</title><script>alert(1)</script>\" onload='x' & <b>\x00\x1b\ud800"


class Reader(HTMLParser):
    """Checks that every element ends where it should, and lists elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> Reader:
    """A page that is well-formed, self-contained, and has no script, no event and no address."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|expression\(", html)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return reader


def chart(*points: Point, title: str = "Loss", **changes: bool) -> LineChart:
    return LineChart(title=title, x="step", y="nats", lines=[Line(name="training", points=points)], **changes)


def test_a_whole_page() -> None:
    row = [1.0, 2.0, None, 4.0]
    heat = HeatMap(title="norms", x="step", columns=[1, 2, 3, 4], rows={"a.b.c": row, "a.b.d": row})
    html = page.page(
        "Run",
        [
            page.tiles({"steps": "3 of 4"}),
            page.section("Loss", page.choice("loss", {"linear": chart((1, 2.0), (2, 1.0)), "log": chart(log_x=True)})),
            page.section("More", page.grid([page.figure(chart((1, 2.0)))]), open_=False),
            page.table("Measures", ["", "a"], [["loss", 1.5]], {0: 1}),
            page.strips(heat),
            page.scale_key("relative"),
            page.scale_key("share"),
            page.marked_block([(True, "said"), (False, "learned")]),
            page.block("a: 1\n"),
        ],
    )
    reader = check(html)
    assert html.startswith("<!doctype html>")
    assert reader.tags.count("svg") == 4 + 1 + 2 + 2  # each choice wide and narrow, the figure, two rows, two keys
    assert ">c</th>" in html  # without what all rows share
    assert "prefers-color-scheme:dark" in html


@pytest.mark.parametrize("seen", [HOSTILE, {"a": HOSTILE}, 5])
def test_text_never_becomes_markup(seen: object) -> None:
    line = Line(name=str(seen), points=[(1, 1.0), (2, 2.0)])
    hostile = LineChart(title=str(seen), x=str(seen), y=str(seen), lines=[line, line])
    heat = HeatMap(title=str(seen), x="step", columns=[1], rows={str(seen): [1.0]})
    text = str(seen)
    html = page.page(
        text,
        [
            page.section(text, page.block(text), page.marked_block([(True, seen)])),
            page.tiles({text: text}),
            page.table(text, [text], [[seen, seen]]),
            page.choice("x", {text: hostile}),
            page.figure(hostile),
            page.strips(heat),
        ],
    )
    check(html)
    assert "\x00" not in html
    html.encode("utf-8")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1.0, None)],
        [(1.0, 5.0)],
        [(1.0, math.nan), (2.0, math.inf)],
        [(0.0, 0.0), (1.0, -1.0)],
        [(1.0, 1e308), (2.0, -1e308), (3.0, 1.0)],
        [(x, None if x % 3 == 0 else x % 7 + 1.0) for x in range(2000)],
    ],
    ids=["none", "null", "one", "not finite", "not positive", "huge", "gaps"],
)
def test_any_points_can_be_drawn(points: list[Point], log: bool) -> None:
    drawn = svg_lines(chart(*points, log_x=log, log_y=log))
    check(drawn)
    assert "nan" not in drawn
    assert "inf" not in drawn
    for number in re.findall(r'd="([^"]*)"', drawn):
        assert all(abs(float(value)) < 2000 for value in re.findall(r"-?\d+\.?\d*", number))


def test_a_gap_is_a_gap_and_a_lonely_point_a_dot() -> None:
    drawn = svg_lines(chart((1, 1.0), (2, 2.0), (3, None), (4, 1.0), (5, None)))
    (line,) = re.findall(r'class="line c0" d="([^"]*)"', drawn)
    assert line.count("M") == 2
    assert line.count("L") == 1
    (dots,) = re.findall(r'class="line dots c0" d="([^"]*)"', drawn)
    assert dots.count("h0") == 1


def test_the_values_can_be_read_at_their_place() -> None:
    drawn = svg_lines(chart((100, 3.14159), (200, 2.0)))
    assert "<title>step 100: training 3.142</title>" in drawn
    assert "nothing recorded yet" in svg_lines(chart())


def test_a_chart_is_told_in_words() -> None:
    assert describe(chart((1, 8.0), (5, 2.0), (9, 3.0))) == (
        "Loss, nats over step: training from 8 at 1 to 3 at 9, least 2, greatest 8"
    )


def test_strips_join_neighbours_of_one_colour() -> None:
    strip = svg_strip([1.0, 1.0, 1.0, 4.0, None, 1.0], "relative")
    check(strip)
    assert re.findall(r'class="([^"]*)" d="M(\d+) 0h(\d+)', strip) == [
        ("r0", "0", "3"),
        ("r4", "3", "1"),
        ("r0", "5", "1"),
    ]
