"""Which implementation of an op runs: one rule, in sight, that a person can override.

Every op has a `reference` that reads like its formula and a `torch` form, fast and portable, that must match it in
values and gradients. Two faster back ends match them too where they serve:

    native    C++ compiled at first use (`ops/native`): plain CPU tensors in FP32 and BF16
    triton    `ops/triton`: plain CUDA tensors in FP32 and BF16

The first in an op's list that serves runs. `SEQLOOM_KERNELS` picks by hand: "ssd=reference,experts=torch" for single
ops, "torch" for all of them (so it also turns the native kernels off), later parts overruling earlier ones.
`seqloom show` prints what runs.

Inside `invariant()` ops compute every token by the same operations in the same order, whatever stands beside it: in
pieces of any size, among any neighbours, guessed or not, an answer is then the same to the last bit. It is for
inference; without it ops are free to take the form that is fastest for their shape.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from seqloom.core.errors import ConfigError

VARIABLE = "SEQLOOM_KERNELS"
_ENCODED = os.environ.encodekey(VARIABLE)

IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "ssd": ("native", "triton", "torch", "reference"),
    "causal_conv": ("native", "triton", "torch", "reference"),
    "attention": ("native", "torch", "reference", "flex"),
    "paged_attention": ("native", "triton", "torch", "reference"),
    "experts": ("native", "triton", "torch", "reference"),
    "linear": ("native", "torch", "reference"),
    "packed_linear": ("native", "torch", "reference"),
    "norm": ("native", "triton", "torch", "reference"),
    "squared_relu": ("native", "torch", "reference"),
    "cross_entropy": ("native", "triton", "torch", "reference"),
    "orthogonalise": ("native", "torch", "reference"),
    "ctc": ("native", "triton", "torch", "reference"),
    "token_draw": ("native", "torch", "reference"),  # its portable form is its reference
    "ctc_beam": ("native", "torch", "reference"),  # of no tensor operations; its portable form is its reference
    "recurrence": ("native", "torch", "reference"),
    "quantize": ("native", "torch", "reference"),  # its portable form is its reference
}
"""The implementations of every op, the preferred one first."""

DEVICES = {"native": "cpu", "triton": "cuda"}
FAST_DTYPES = frozenset((torch.float32, torch.bfloat16))
_READABLE = FAST_DTYPES | {torch.int64, torch.int32, torch.bool}


_invariant: ContextVar[bool] = ContextVar("invariant", default=False)


@contextmanager
def invariant(wanted: bool = True) -> Iterator[None]:
    """Have ops compute a token by the same operations whatever stands beside it."""
    before = _invariant.set(wanted)
    try:
        yield
    finally:
        _invariant.reset(before)


def is_invariant() -> bool:
    """Whether that is asked for here."""
    return _invariant.get()


def chosen(op: str, device: torch.device, dtype: torch.dtype, *tensors: Tensor | None) -> str:
    """The implementation of an op for tensors of this device and dtype: the override if there is one, else the
    preferred implementation that serves them. The portable forms serve every device and dtype.

    Args:
        tensors: everything the op is called with. The fast back ends read memory behind torch's back, so they are
            chosen only for tensors that have some, and while nobody records or transforms what torch does.
    Raises:
        ConfigError: the override names an unknown op or implementation, or a back end that is not here; or SEQLOOM_ISA
            asks for what the compiler or the processor cannot do.
    """
    preferred = _preferred(op, device.type, override())
    if preferred not in DEVICES or (dtype in FAST_DTYPES and plain(tensors, device.type)):
        return preferred
    return "torch"


def override() -> str:
    """What a person has picked by hand.

    Read behind the mapping's back, which says that nothing is there by raising an error: every op asks.
    """
    found = os.environ._data.get(_ENCODED)  # type: ignore[attr-defined]
    return "" if found is None else os.environ.decodevalue(found)


def begin(device: torch.device) -> None:
    """Have the kernels for a device compiled, where they are not yet, while the caller prepares other things."""
    if device.type == DEVICES["native"] and _native_may_run():
        from seqloom.ops.native.build import begin

        begin()


def _native_may_run() -> bool:
    overrides = _overrides(override())
    return any(overrides.get(op, "native") == "native" for op in IMPLEMENTATIONS)


def table(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Op -> implementation that runs for tensors of this device and dtype.

    Raises:
        ConfigError: as in `chosen`.
    """
    return {op: chosen(op, device, dtype) for op in IMPLEMENTATIONS}


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The table, and what became of the back end of this kind of device; raises as `table`."""
    found = table(device, dtype)
    if device.type == DEVICES["triton"]:
        return {**found, "triton": _why_absent("triton", "ssd") or "installed"}
    if device.type != DEVICES["native"]:
        return found
    if not _native_may_run():
        return {**found, "native_library": f"not looked for, since {VARIABLE}={override()}"}
    from seqloom.ops.native.build import outcome

    result = outcome()
    if result.reason:
        return {**found, "native_library": f"absent: {result.reason}"}
    return {**found, "native_library": f"{result.compiler}, {result.path or 'for this process only'}"}


def plain(tensors: tuple[Tensor | None, ...], device_type: str) -> bool:
    """Whether tensors are ordinary ones in memory of this kind of device, and nobody records or transforms calls."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and not (
            (type(tensor) is Tensor or type(tensor) is Parameter)
            and (tensor.is_cpu if device_type == "cpu" else tensor.is_cuda)
            and tensor.dtype in _READABLE
        ):
            return False
    return True


@lru_cache
def _preferred(op: str, device_type: str, text: str) -> str:
    """The implementation for ordinary tensors of a kind of device under an override."""
    wanted = _overrides(text).get(op)
    for name in (wanted,) if wanted else IMPLEMENTATIONS[op]:
        if name not in DEVICES:
            return name
        if device_type == DEVICES[name]:
            if not (absent := _why_absent(name, op)):
                return name
            if wanted:
                raise ConfigError(f"{VARIABLE}: {op}={name} is wanted, but {absent}")
    return "torch"


def _why_absent(name: str, op: str) -> str:
    """Why a back end cannot run an op here; empty if it can."""
    if not (Path(__file__).parent / name / f"{op}.py").exists():
        return f"{op} has no {name} form"
    if name == "triton":
        return "" if importlib.util.find_spec("triton") else "the package 'triton' is not installed"
    from seqloom.ops.native.build import why_not

    return why_not() or ""


@lru_cache
def _overrides(text: str) -> dict[str, str]:
    choices: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, equals, name = (side.strip() for side in part.partition("="))
        if not equals:
            choices |= _everywhere(part)
        elif op not in IMPLEMENTATIONS:
            raise ConfigError(f"{VARIABLE}: '{part}' names no known op; known: {', '.join(IMPLEMENTATIONS)}")
        elif name not in IMPLEMENTATIONS[op]:
            raise ConfigError(f"{VARIABLE}: '{part}': implementations of {op}: {', '.join(IMPLEMENTATIONS[op])}")
        else:
            choices[op] = name
    return choices


def _everywhere(name: str) -> dict[str, str]:
    """One implementation for all ops that have it."""
    choices = {op: name for op, names in IMPLEMENTATIONS.items() if name in names}
    if not choices:
        known = dict.fromkeys(each for names in IMPLEMENTATIONS.values() for each in names)
        raise ConfigError(
            f"{VARIABLE}: '{name}' names neither an op with its implementation, such as ssd=torch, nor one "
            f"implementation for all ops: {', '.join(known)}"
        )
    return choices
