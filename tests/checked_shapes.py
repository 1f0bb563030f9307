"""Shapes and types in signatures are checked where arrays flow: the first calls of every function in every test.

jaxtyping checks each call, and builds the checks of each function when its module is imported. On models of some
thousand parameters that takes three quarters of the time, for calls that repeat the ones before them, and seven seconds
of imports in every process. Here a function gets its checks with its first call, and after so many calls of a test it
runs as it does for users, until the next test begins.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

CALLS = 16
"""Of one function in one test that are checked."""

ROOMS = ["seqloom.numerics", "seqloom.ops", "seqloom.nn", "seqloom.rl", "seqloom.systems"]

_jaxtyped = jaxtyping.jaxtyped
_test = 0


def install() -> None:
    """Must precede the first import of the rooms."""
    jaxtyping.jaxtyped = _checked  # type: ignore[assignment]  # what the hook puts on every function and class
    jaxtyping.install_import_hook(ROOMS, typechecker="beartype.beartype")


def begin_test() -> None:
    """All functions are checked again."""
    global _test
    _test += 1


def _checked(given: Any = None, *, typechecker: Any) -> Any:
    if given is None:
        return functools.partial(_checked, typechecker=typechecker)
    if isinstance(given, FunctionType):
        return given if "<locals>" in given.__qualname__ else _first_calls(given, typechecker)
    if dataclasses.is_dataclass(given):
        given.__init__ = _first_calls(given.__init__, typechecker)
    return given


def _first_calls(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    check: Callable[..., Any] | None = None
    test, left = _test, CALLS

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        nonlocal check, test, left
        if test != _test:
            test, left = _test, CALLS
        if not left:
            return function(*args, **named)
        left -= 1
        if check is None:
            check = _jaxtyped(function, typechecker=typechecker)
        return check(*args, **named)

    return call
