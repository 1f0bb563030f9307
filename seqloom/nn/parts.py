"""What a layer, or a stack of them, is made of, looked at once, so that a token only asks whether it is still the same.

A part has changed when another module or parameter stands in its place, when its class, a setting or the place of its
numbers is another one, or when somebody listens to it. Numbers may change where they are, since they are read anew for
every token; of those that were copied in another format the copy is compared with what is there now.
"""

from collections.abc import Sequence
from ctypes import string_at

from torch import Tensor, nn

_SETTINGS = (
    *("format", "eps", "shaping", "weight", "up_proj", "down_proj", "layer_scale"),
    *("top_k", "expert_groups", "top_groups", "normalize", "scaling"),
)
"""Plain attributes that a layer's result depends on, as packed weights and a router's rule are."""


class Parts:
    """The modules of a layer, or of a stack in the mixer's place, their parameters and settings.

    Args:
        copied: parameters whose numbers are remembered in another form, in memory of the CPU.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, copied: Sequence[Tensor]) -> None:
        modules = [norm, *mixer.modules()]
        self._norm, self._kinds = norm, (type(norm), type(mixer))  # the mixer itself may go away
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        inner = [(module._modules, name, held) for module in modules for name, held in module._modules.items()]
        inner += [
            (vars(module), name, vars(module)[name]) for module in modules for name in _SETTINGS if name in vars(module)
        ]
        self._held = [(table, name, held, type(held)) for table, name, held in inner]
        self._places = [
            (table, name, tensor.data_ptr(), tensor.dtype)
            for module in modules
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        self._copied = [(each.data_ptr(), each.nbytes, string_at(each.data_ptr(), each.nbytes)) for each in copied]

    def unchanged(self, norm: nn.Module, mixer: nn.Module) -> bool:
        """Whether the mixer, and the norm in front, are what they were."""
        if norm is not self._norm or (type(norm), type(mixer)) != self._kinds or any(self._hooks):
            return False
        try:
            for inside, name, held, kind in self._held:
                if inside[name] is not held or type(held) is not kind:
                    return False
            for tensors, name, place, dtype in self._places:
                tensor = tensors[name]
                if tensor is None or tensor.data_ptr() != place or tensor.dtype is not dtype:
                    return False
        except KeyError:  # taken out
            return False
        for place, size, numbers in self._copied:  # noqa: SIM110 -- a generator would take longer than its work
            if string_at(place, size) != numbers:
                return False
        return True
