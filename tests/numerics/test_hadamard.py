import pytest
import torch

from seqloom.numerics.hadamard import DEFAULT_SIGNS, hadamard


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("signs", [DEFAULT_SIGNS, DEFAULT_SIGNS * 2, (1, -1, -1, 1)], ids=len)
def test_it_is_the_signed_sylvester_matrix(signs: tuple[int, ...]):
    linalg = pytest.importorskip("scipy.linalg")
    size = len(signs)
    matrix = torch.tensor(signs).diag().double() @ torch.from_numpy(linalg.hadamard(size)).double() / size**0.5
    x = normal(0, 6, 3 * size)
    exact = (x.double().unflatten(1, (3, size)) @ matrix).flatten(1)
    torch.testing.assert_close(hadamard(x, 1, signs).double(), exact, rtol=2**-8, atol=1e-6)
    assert torch.equal(hadamard(x.T, 0, signs), hadamard(x, 1, signs).T)


def test_the_transforms_of_two_operands_cancel():
    g, x = normal(1, 40, 7), normal(2, 40, 9)  # 40 tokens, filled up to 48
    transformed = [hadamard(each, 0, DEFAULT_SIGNS) for each in (g, x)]
    assert [each.shape for each in transformed] == [(48, 7), (48, 9)]
    exact = g.double().T @ x.double()
    got = transformed[0].double().T @ transformed[1].double()
    assert (got - exact).norm() < 1e-2 * exact.norm()


def test_an_outlier_is_spread_over_its_tile_alone():
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 18] = 64
    assert hadamard(x, 1, DEFAULT_SIGNS).abs().tolist() == [[0.0] * 16 + [16.0] * 16]
