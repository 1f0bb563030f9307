import pytest

from seqloom.core.readable import count, duration, short, size, words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1"), (0.00061234, "0.000612"), (12.345, "12.3"), (999.9, "1k"), (4500, "4.5k"),
        (6.1e-5, "6.1e-5"), (-4500, "-4.5k"), (29_999_999, "30M"), (2.5e9, "2.5B"), (3e12, "3T"), (1.5e18, "1.50e+18"),
        (None, "–"), (float("nan"), "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_numbers_in_few_characters(value: float | None, text: str) -> None:
    assert short(value) == text


def test_more_digits_where_asked() -> None:
    assert short(8.34374, 4) == "8.344"
    assert count(491400.0) == "491,400"
    assert words("bits_per_byte") == "bits per byte"


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (5e9, "5 GB"), (2e13, "20 TB")]
)
def test_sizes(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
