"""Streams are pure functions of seed and place, and the global generators can be put back."""

import hashlib

import pytest
import torch

from seqloom.core.errors import CheckpointError
from seqloom.core.seeds import capture_rng, derive, generator, restore_rng


def test_a_seed_is_the_hash_of_its_path() -> None:
    digest = hashlib.blake2b(b'[7, "order", 3]', digest_size=8).digest()
    assert derive(7, "order", 3) == int.from_bytes(digest, "little")


def test_neighbouring_places_have_unrelated_seeds() -> None:
    places = [
        derive(0),
        derive(1),
        derive(0, 1),
        derive(0, "1"),
        derive(0, "a", "b"),
        derive(0, "a b"),
        derive(0, "ab"),
    ]
    places += [derive(0, "row", row) for row in range(1000)]
    assert len(set(places)) == len(places)
    assert all(0 <= seed < 2**64 for seed in places)


def test_the_same_place_draws_the_same_numbers() -> None:
    first = torch.rand(8, generator=generator(3, "noise"))
    assert torch.equal(first, torch.rand(8, generator=generator(3, "noise")))
    assert not torch.equal(first, torch.rand(8, generator=generator(3, "other")))


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(8, generator=generator(3, "noise"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_restored_state_draws_the_same_numbers() -> None:
    states = capture_rng()
    expected = torch.randn(5)
    torch.randn(100)
    restore_rng(states)
    assert torch.equal(torch.randn(5), expected)


@pytest.mark.gpu
def test_a_restored_state_draws_the_same_numbers_on_the_gpu() -> None:
    states = capture_rng()
    expected = torch.randn(5, device="cuda")
    torch.randn(100, device="cuda")
    restore_rng(states)
    assert torch.equal(torch.randn(5, device="cuda"), expected)


@pytest.mark.parametrize("states", [{}, {"cpu": torch.zeros(3, dtype=torch.uint8)}, {"cpu": torch.zeros(5056)}])
def test_what_is_no_state_is_refused(states: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="not a saved state of random generators"):
        restore_rng(states)
