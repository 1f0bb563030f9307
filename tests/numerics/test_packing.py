import pytest
import torch

from seqloom.core.errors import DataError
from seqloom.numerics.packing import pack, swizzle, unpack, unswizzle


def noise(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_even_element_is_the_low_half():
    assert pack(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]
    codes = noise(16, 2, 3, 10)
    assert torch.equal(unpack(pack(codes)), codes)
    with pytest.raises(DataError, match="3"):
        pack(codes[..., :3])


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (300, 9), (1, 1)])
def test_swizzled_scales_lie_where_the_tensor_core_looks(rows: int, columns: int):
    scales = noise(256, rows, columns)
    buffer = swizzle(scales)
    wide = -(-columns // 4)
    assert buffer.numel() == -(-rows // 128) * 128 * wide * 4
    for row in range(0, rows, 7):
        for column in range(columns):
            tile = row // 128 * wide + column // 4
            assert buffer[(tile * 32 + row % 32) * 16 + row % 128 // 32 * 4 + column % 4] == scales[row, column]
    assert buffer.int().sum() == scales.int().sum()
    assert torch.equal(unswizzle(buffer, rows, columns), scales)
