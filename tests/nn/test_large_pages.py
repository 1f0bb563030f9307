"""Memory in large pages is memory like any other, beginning with a page."""

import mmap

import pytest
import torch

from seqloom.nn.large_pages import LARGE, empty


def test_begins_with_a_page_and_outlives_its_maker() -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this system has no large pages to ask for")
    cpu = torch.device("cpu")
    numbers = empty(3, LARGE + 5, dtype=torch.bfloat16, device=cpu)
    assert numbers.shape == (3, LARGE + 5)
    assert numbers.data_ptr() % LARGE == 0
    last = numbers.fill_(1.5)[2, -7:]
    del numbers
    assert (last == 1.5).all()
    assert empty(0, 4, dtype=torch.float32, device=cpu).shape == (0, 4)
