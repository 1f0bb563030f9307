"""What a layer, or a stack of them, is made of, looked at once, so that a token only asks whether it is still the same.

A part has changed when another module or parameter stands in its place, when its class, a setting or the place of its
numbers is another one, or when somebody listens to it. Numbers may change where they are, since they are read anew for
every token; of those that were copied in another format the copy is compared with what is there now.

A model has hundreds of parts, and a step of a small one takes a millisecond, so the loops over them run in C.
"""

from collections.abc import Sequence
from operator import attrgetter, getitem, is_
from typing import Any

from torch import Tensor, nn

_SETTINGS = (
    *("format", "eps", "shaping", "weight", "up_proj", "down_proj", "layer_scale"),
    *("top_k", "expert_groups", "top_groups", "normalize", "scaling"),
)
"""Plain attributes that a layer's result depends on, as packed weights and a router's rule are."""

_dtype = attrgetter("dtype")


class Parts:
    """The modules of a layer or of a whole stack, their parameters and settings.

    Args:
        beside: what belongs to them from outside, such as the norm in front.
        owner: the one by which this is remembered, and which may go away before it.
        copied: parameters whose numbers are remembered in another form, in memory of the CPU.
    """

    def __init__(self, beside: nn.Module, owner: nn.Module, copied: Sequence[Tensor]) -> None:
        self._beside, self._kinds = beside, (type(beside), type(owner))
        modules = [*beside.modules(), *owner.modules()]
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        held = [(module._modules, name) for module in modules for name in module._modules]
        held += [(vars(module), name) for module in modules for name in _SETTINGS if name in vars(module)]
        self._places = [table for table, _ in held], [name for _, name in held]
        self._held = list(map(getitem, *self._places))
        self._types = list(map(type, self._held))
        found = [
            (table, name)
            for module in modules
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        self._tensors: tuple[list[Any], list[str]] = [table for table, _ in found], [name for _, name in found]
        self._numbers = _numbers(*self._tensors)
        self._copied: Any = None
        if copied:
            from seqloom.ops.native.step import Kept

            self._copied = Kept(copied)

    def unchanged(self, beside: nn.Module, owner: nn.Module) -> bool:
        """Whether both are what they were."""
        if beside is not self._beside or (type(beside), type(owner)) != self._kinds or any(self._hooks):
            return False
        try:
            held = list(map(getitem, *self._places))
            if not all(map(is_, held, self._held)) or list(map(type, held)) != self._types:
                return False
            if _numbers(*self._tensors) != self._numbers:
                return False
        except (KeyError, TypeError):  # taken out, or None in its place
            return False
        return self._copied is None or self._copied.unchanged()


def _numbers(tables: list[Any], names: list[str]) -> tuple[list[int], list[Any]]:
    """Where the numbers of tensors are, and in which format."""
    tensors = list(map(getitem, tables, names))
    return list(map(Tensor.data_ptr, tensors)), list(map(_dtype, tensors))
