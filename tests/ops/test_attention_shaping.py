import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqloom.ops import attention as module
from seqloom.ops.attention import PLAIN, Shaping, attention

SHAPINGS = {
    "cap": Shaping(cap=2.0),
    "inverse_temperature": Shaping(inverse_temperature=0.5),
    "clip": Shaping(clip=(-0.03, 1.03)),
    "all": Shaping(cap=3.0, inverse_temperature=0.7, clip=(-0.1, 1.2)),
}
DOCUMENTS = torch.tensor([[0] * 3 + [1] * 1 + [2] * 13, [0] * 9 + [-1] * 8], dtype=torch.int32)
LENGTHS = torch.tensor([13, 6])


def inputs(B: int = 2, T: int = 17, S: int | None = None, H: int = 4, G: int = 2, K: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    S = T if S is None else S
    return [3 * torch.randn(*shape, dtype=torch.float64) for shape in ((B, H, T, K), (B, G, S, K), (B, G, S, K))]


def formula(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, shaping: Shaping) -> Tensor:
    """The spec's equations, a head at a time."""
    heads = []
    for h in range(q.shape[1]):
        g = h * k.shape[1] // q.shape[1]
        score = torch.einsum("btk,bsk->bts", q[:, h], k[:, g]) / math.sqrt(q.shape[-1])
        if shaping.cap is not None:
            score = shaping.cap * torch.tanh(score / shaping.cap)
        weight = torch.exp(shaping.inverse_temperature * score) * (~hidden)
        p = weight / weight.sum(-1, keepdim=True)
        if shaping.clip is not None:
            low, high = shaping.clip
            p = torch.clip((high - low) * p + low, 0, 1) * (~hidden)
        heads.append(torch.einsum("bts,bsk->btk", p, v[:, g]))
    return torch.stack(heads, 1)


def later(T: int, S: int, offset: int = 0) -> Tensor:
    return torch.arange(S) > torch.arange(T)[:, None] + offset


@pytest.fixture(params=["reference", "torch"])
def form(request, monkeypatch):
    monkeypatch.setenv("SEQLOOM_KERNELS", f"attention={request.param}")
    return request.param


@pytest.fixture(params=SHAPINGS)
def shaping(request):
    return SHAPINGS[request.param]


@pytest.mark.usefixtures("form")
def test_equals_the_formula(same, shaping):
    hidden = later(17, 17)
    same(
        lambda *leaves: attention(*leaves, shaping=shaping),
        lambda *leaves: formula(*leaves, hidden, shaping),
        *inputs(),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.usefixtures("form")
def test_packed_documents_and_padding(same, shaping):
    hidden = later(17, 17) | (DOCUMENTS[:, :, None] != DOCUMENTS[:, None])
    same(
        lambda *leaves: attention(*leaves, DOCUMENTS, shaping=shaping),
        lambda *leaves: formula(*leaves, hidden, shaping) * (DOCUMENTS >= 0)[:, None, :, None],
        *inputs(),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.usefixtures("form")
def test_earlier_keys_of_ragged_rows(same, shaping, T):
    hidden = torch.stack([later(T, 13 + T, int(length)) for length in LENGTHS])
    same(
        lambda *leaves: attention(*leaves, lengths=LENGTHS, shaping=shaping),
        lambda *leaves: formula(*leaves, hidden, shaping),
        *inputs(T=T, S=13 + T),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize(("documents", "lengths"), [(None, None), (DOCUMENTS, None), (None, LENGTHS)])
def test_pieces_change_nothing(same, monkeypatch, shaping, documents, lengths):
    T, S = (17, 17) if lengths is None else (9, 22)
    leaves = inputs(T=T, S=S)
    whole = module.attention_in_pieces(*leaves, documents, lengths, shaping)
    monkeypatch.setattr(module, "_SCORES", 2 * 4 * S * 5)  # five queries at a time
    torch.testing.assert_close(module.attention_in_pieces(*leaves, documents, lengths, shaping), whole)
    same(
        lambda *leaves: module.attention_in_pieces(*leaves, documents, lengths, shaping),
        lambda *leaves: module.attention_reference(
            *leaves, module._visible(T, slice(0, T), S, documents, lengths, torch.device("cpu")), False, shaping
        ),
        *leaves,
        rtol=1e-10,
        atol=1e-12,
    )


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


def test_no_square_of_a_long_row_is_ever_held(monkeypatch):
    monkeypatch.setattr(module, "_SCORES", 2**14)
    documents = torch.zeros(1, 512, dtype=torch.int32)
    leaves = [leaf.requires_grad_() for leaf in inputs(B=1, T=512, H=2, G=1)]
    with Largest() as watched:
        attention(*leaves, documents, shaping=SHAPINGS["cap"]).sum().backward()
    assert watched.numel <= 2**14


@pytest.mark.usefixtures("form")
def test_neutral_values_give_the_plain_attention(same):
    for neutral in (Shaping(clip=(0.0, 1.0)), Shaping(cap=1e9), Shaping(inverse_temperature=1.0)):
        same(
            lambda *leaves, neutral=neutral: attention(*leaves, shaping=neutral),
            lambda *leaves: attention(*leaves, shaping=PLAIN),
            *inputs(),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.usefixtures("form")
def test_a_cap_leaves_the_future_hidden():
    """A cap after the mask would turn -∞ into -c, and every later key would be seen."""
    q, k, v = inputs()
    changed = [k.clone(), v.clone()]
    for tensor in changed:
        tensor[:, :, 9:] += 100
    before, after = (attention(q, *kv, shaping=SHAPINGS["cap"])[:, :, :9] for kv in ((k, v), changed))
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_capped_scores_stay_within_the_cap():
    scores = torch.linspace(-1e4, 1e4, 1001, dtype=torch.float64)
    p = Shaping(cap=5.0).probabilities(scores[None], None)
    assert (p.max() / p.min()).log() <= 2 * 5.0 + 1e-9


def test_bf16_is_computed_in_fp32(shaping):
    narrow = [value.bfloat16() for value in inputs()]
    y = attention(*narrow, shaping=shaping)
    assert y.dtype == torch.bfloat16
    exact = attention(*(value.double() for value in narrow), shaping=shaping)
    plain = shaping.cap is None and shaping.clip is None  # torch's own kernel
    torch.testing.assert_close(y.double(), exact, rtol=0.05 if plain else 2**-8, atol=0.02 if plain else 1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_the_fused_form_has_the_same_values(documents):
    from seqloom.ops.attention_flex import attention_flex

    shaping = Shaping(cap=2.0, inverse_temperature=0.5)
    y = attention_flex(*inputs(), documents, shaping)
    expected = module.attention_in_pieces(*inputs(), documents, None, shaping)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_the_compiled_kernel_matches(monkeypatch, same, dtype, documents):
    monkeypatch.setenv("SEQLOOM_KERNELS", "attention=flex")
    leaves = [value.to("cuda", dtype) for value in inputs(K=32)]
    documents = None if documents is None else documents.cuda()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    same(
        lambda *leaves: attention(*leaves, documents, shaping=SHAPINGS["cap"]),
        lambda *leaves: module.attention_in_pieces(*leaves, documents, None, SHAPINGS["cap"]),
        *leaves,
        rtol=tolerance,
        atol=tolerance,
    )
