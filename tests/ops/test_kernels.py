"""The rule that chooses: what a person says, then what is here, then what kind of tensors come."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqloom.core.errors import ConfigError
from seqloom.ops import kernels
from seqloom.ops import ssd as module
from seqloom.ops.kernels import IMPLEMENTATIONS, chosen, describe, table
from seqloom.ops.native import build

HERE = torch.device("cpu"), torch.float32
BACK_ENDS = ("native", "triton")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    kernels._preferred.cache_clear()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """No native library."""
    monkeypatch.setattr(build, "_outcome", build.Outcome(reason="no compiler"))
    return "no compiler"


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native library, with every kernel of the table."""
    monkeypatch.setattr(kernels, "_why_absent", lambda name, op: "")


def test_every_op_has_a_portable_form_and_a_reference() -> None:
    assert all({"torch", "reference"} <= set(names) for names in IMPLEMENTATIONS.values())


def test_the_table_is_what_the_folders_hold() -> None:
    """Only one way round, as files beside the kernels of ops help to build and call them."""
    for name in BACK_ENDS:
        folder = Path(kernels.__file__).parent / name
        missing = [op for op, names in IMPLEMENTATIONS.items() if name in names and not (folder / f"{op}.py").exists()]
        assert missing == []


@pytest.mark.usefixtures("absent")
def test_the_portable_forms_run_where_nothing_else_is() -> None:
    assert table(*HERE) == dict.fromkeys(IMPLEMENTATIONS, "torch")


@pytest.mark.usefixtures("present")
def test_the_first_back_end_that_serves_the_device_runs() -> None:
    for device, name in (("cpu", "native"), ("cuda", "triton"), ("meta", "native")):
        found = table(torch.device(device), torch.bfloat16)
        there = [op for op, names in IMPLEMENTATIONS.items() if name in names and device != "meta"]
        assert [op for op, form in found.items() if form != "torch"] == there
        assert {found[op] for op in there} <= {name}


def test_the_variable_overrides_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", " ssd = reference ,experts=torch,")
    assert chosen("ssd", *HERE) == "reference"
    assert chosen("experts", *HERE) == "torch"


@pytest.mark.usefixtures("present")
def test_one_word_speaks_for_all_ops_that_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    assert set(table(*HERE).values()) == {"torch"}
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch, ssd=native")
    assert [op for op, form in table(*HERE).items() if form == "native"] == ["ssd"]
    monkeypatch.setenv("SEQLOOM_KERNELS", "flex")
    assert (chosen("attention", *HERE), chosen("ssd", *HERE)) == ("flex", "native")


def test_one_word_that_turns_the_library_off_does_not_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "outcome", lambda: pytest.fail("looked for a library"))
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    assert set(table(*HERE).values()) == {"torch"}


def test_a_back_end_by_name_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setenv("SEQLOOM_KERNELS", "ssd=native")
    with pytest.raises(ConfigError, match=f"^SEQLOOM_KERNELS: ssd=native is wanted, but {absent}$"):
        table(*HERE)
    monkeypatch.setenv("SEQLOOM_KERNELS", "ssd=triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ssd=triton is wanted, but the package 'triton' is not installed$"):
        table(torch.device("cuda"), torch.float32)


def test_what_became_of_a_back_end_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_outcome", build.Outcome(reason="no compiler"))
    assert describe(*HERE) == {**table(*HERE), "native_library": "absent: no compiler"}
    monkeypatch.setattr(build, "_outcome", build.Outcome(compiler="g++ 1", path=Path("kept", "here")))
    assert describe(*HERE)["native_library"] == "g++ 1, kept/here"
    monkeypatch.setattr(build, "_outcome", build.Outcome(compiler="g++ 1"))
    assert describe(*HERE)["native_library"] == "g++ 1, for this process only"
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    assert describe(*HERE)["native_library"] == "not looked for, since SEQLOOM_KERNELS=torch"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert describe(torch.device("cuda"), HERE[1])["triton"] == "the package 'triton' is not installed"
    assert describe(torch.device("meta"), HERE[1]) == dict.fromkeys(IMPLEMENTATIONS, "torch")


class Subclass(Tensor):
    """Stands for distributed tensors and their like."""


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    ("tensors", "form"),
    [
        ((torch.ones(2), None, torch.nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.int64)), "native"),
        ((torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bool)), "native"),
        ((torch.ones(2), torch.ones(2, dtype=torch.float64)), "torch"),
        ((torch.ones(2), torch.ones(2).as_subclass(Subclass)), "torch"),
        ((torch.ones(2, device="meta"),), "torch"),
    ],
    ids=["FP32", "BF16", "FP64", "subclass", "meta"],
)
def test_the_library_serves_plain_tensors_of_its_dtypes(tensors: tuple[Tensor | None, ...], form: str) -> None:
    assert chosen("ssd", *HERE, *tensors) == form


@pytest.mark.usefixtures("present")
def test_the_library_does_not_serve_other_dtypes() -> None:
    assert {chosen("ssd", HERE[0], dtype) for dtype in (torch.float64, torch.float16)} == {"torch"}


@pytest.mark.usefixtures("present")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_who_records_or_transforms_calls_gets_calls_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def op(x: Tensor) -> Tensor:
        found.append(chosen("ssd", *HERE, x))
        return x.clone()

    x = torch.ones(2)
    torch.vmap(op)(x)
    torch.jit.trace(op, x, check_trace=False)
    with TorchDispatchMode():  # nothing is called under it, as it would only load the compiler of torch
        found.append(chosen("ssd", *HERE, x))
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        op(x)
    op(x)
    assert found == ["torch"] * 4 + ["native"]


def test_the_override_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ssd_chunked", lambda *args, **kwargs: pytest.fail("the chunked form ran"))
    monkeypatch.setenv("SEQLOOM_KERNELS", "ssd=reference")
    x, dt, b = torch.randn(1, 3, 2, 2), torch.rand(1, 3, 2), torch.randn(1, 3, 1, 2)
    module.ssd(x, dt, -torch.ones(2), b, b, chunk=2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sdd=reference", f"'sdd=reference' names no known op; known: {', '.join(IMPLEMENTATIONS)}"),
        ("ssd=fast", "'ssd=fast': implementations of ssd: native, triton, torch, reference"),
        ("ssd", "'ssd' names neither"),
        ("off", "'off' names neither an op with its implementation"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch, text: str, named: str) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", text)
    with pytest.raises(ConfigError, match=named):
        table(*HERE)
