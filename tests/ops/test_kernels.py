import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.ops import ssd as module
from seqloom.ops.kernels import IMPLEMENTATIONS, chosen, table

HERE = torch.device("cpu"), torch.float32


def test_every_op_has_a_portable_form_and_a_reference(monkeypatch):
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    assert table(*HERE) == dict.fromkeys(("ssd", "causal_conv", "attention", "experts"), "torch")
    assert all("reference" in names for names in IMPLEMENTATIONS.values())


def test_the_variable_overrides_op_by_op(monkeypatch):
    monkeypatch.setenv("SEQLOOM_KERNELS", " ssd = reference ,experts=torch,")
    assert chosen("ssd", *HERE) == "reference"
    assert chosen("experts", *HERE) == "torch"
    assert chosen("attention", *HERE) == "torch"


def test_the_override_is_what_runs(monkeypatch):
    monkeypatch.setattr(module, "ssd_chunked", lambda *args, **kwargs: pytest.fail("the chunked form ran"))
    monkeypatch.setenv("SEQLOOM_KERNELS", "ssd=reference")
    x, dt, b = torch.randn(1, 3, 2, 2), torch.rand(1, 3, 2), torch.randn(1, 3, 1, 2)
    module.ssd(x, dt, -torch.ones(2), b, b, chunk=2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sdd=reference", "known: ssd, causal_conv, attention, experts"),
        ("ssd=fast", "torch, reference"),
        ("ssd", "ssd"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(monkeypatch, text, named):
    monkeypatch.setenv("SEQLOOM_KERNELS", text)
    with pytest.raises(ConfigError, match=named):
        table(*HERE)
