import time

import pytest

from benchmarks import pairing
from benchmarks.pairing import Side, in_turns, plain, quartiles, summary
from benchmarks.table import table


def test_a_ratio_is_formed_within_each_turn() -> None:
    """The machine is three times slower in the second turn; the ratio does not notice."""
    line = summary({"ours": [1.0, 3.0, 1.0], "peer": [2.0, 6.0, 2.0]})
    assert line["ratio"] == {"peer": [2.0, 2.0, 2.0]}
    assert line["seconds"]["ours"][1] == 1.0


def test_sides_take_turns_and_the_first_one_warms_up() -> None:
    ran: list[str] = []
    line = in_turns({"ours": plain(lambda: ran.append("ours")), "peer": plain(lambda: ran.append("peer"))}, 3)
    assert [set(ran[turn : turn + 2]) for turn in range(0, 8, 2)] == [{"ours", "peer"}] * 4
    assert ran[2] != ran[4]  # nobody always goes first
    assert line["ratio"].keys() == {"peer"}


def test_what_a_turn_uses_up_is_made_outside_its_time() -> None:
    given: list[int] = []

    def slow() -> int:
        time.sleep(0.02)
        return len(given)

    line = in_turns({"ours": Side(given.append, slow)}, 2, units=4)
    assert given == [0, 1, 2]
    assert line["seconds"]["ours"][1] < 0.02 / 4


def test_sides_that_ran_before_are_warm_and_long_ones_take_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    assert in_turns({"ours": plain(lambda: ran.append(1))}, 3, warm=True)["turns"] == len(ran) == 3
    monkeypatch.setattr(pairing, "PATIENCE_SECONDS", 0)
    assert in_turns({"ours": plain(lambda: ran.append(1))}, 3)["turns"] == 1
    assert len(ran) == 5


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == [2.0, 3.0, 4.0]
    assert quartiles([1.23456]) == [1.235] * 3


def test_the_table_leaves_out_columns_that_are_empty() -> None:
    times = {"seconds": {"ours": [0.001, 0.0015, 0.002]}, "ratio": {"peer": [1.0, 2.0, 3.0]}}
    lines = [{"case": "a", **times}, {"case": "longer", "error": "other losses"}]
    assert table(lines).splitlines() == [
        "case    ours    against the others",
        "a       1.5 ms  peer 2.00 x (1.00 to 3.00) our time",
        "longer                                               not measured: other losses",
    ]
