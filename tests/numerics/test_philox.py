import pytest
import torch

from seqloom.numerics.philox import random_bits24, random_bytes, random_words

KEY = 0x299F31D0A4093822


def plain(key: int, counter: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 in Python integers, written from the paper's figure."""
    c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right % 2**32, left >> 32 ^ c[3] ^ k[1], left % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            KEY,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_known_answers_of_random123(key: int, counter: tuple[int, ...], expected: tuple[int, ...]):
    assert random_words(key, torch.tensor([counter])).tolist() == [list(expected)]


def test_many_counters_match_plain_integers():
    counters = torch.randint(2**32, (200, 4), generator=torch.Generator().manual_seed(0))
    assert random_words(KEY, counters).tolist() == [plain(KEY, tuple(row)) for row in counters.tolist()]


def test_every_element_has_the_number_of_its_place():
    rows, columns = 3, 37
    found, finer = random_bytes(KEY, rows, columns), random_bits24(KEY, rows, columns)
    assert found.shape == finer.shape == (rows, columns)
    for r in range(rows):
        for c in range(columns):
            group = r * 3 + c // 16
            word = plain(KEY, (group, 0, 0, 0))[c % 16 // 4]
            assert found[r, c] == word.to_bytes(4, "little")[c % 4]
            assert finer[r, c] == plain(KEY, (group, 0, 1 + c % 16 // 4, 0))[c % 4] >> 8
