"""seqloom: train hybrid Mamba-Transformer language models of the Nemotron family and generate with them; on the same
parts, speech recognition and agents.

The public surface, loaded only when first used so that `import seqloom` stays light:

    run = seqloom.recipe("hybrid_lm/tiny")          a complete, typed configuration
    folder = seqloom.train(run, "runs/tiny")        trains, or continues where it stopped
    model = seqloom.load("runs/tiny")               model(tokens) -> logits of shape B T V
    engine = seqloom.Engine("runs/tiny")            engine.generate(["import os"], ...)
    seqloom.quantize("runs/tiny", "tiny-nvfp4")     in fewer bits, and what that costs
    seqloom.transcribe("runs/an4", ["talk.flac"])   what is said in recordings
    seqloom.play("runs/catch", episodes=4)          episodes of an agent, and where it looked
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqloom.core.checkpoint.run_folder import RunFolder
    from seqloom.core.rooms import load, recipe
    from seqloom.quantize.run import quantize
    from seqloom.serve.engine import Engine
    from seqloom.systems.attention_agent.play import play
    from seqloom.systems.deep_speech2.transcribe import transcribe
    from seqloom.train.loop import train
else:
    import seqloom.quantize
    import seqloom.train  # noqa: F401  # the empty rooms, made callable below

# Threads of torch's OpenMP spin for milliseconds after each parallel loop, on the cores that those of our kernels need
# next; where this is set before torch is loaded, they soon sleep, and small models train a third faster on two cores.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

__version__ = "0.1.0"
__all__ = ["Engine", "RunFolder", "load", "play", "quantize", "recipe", "train", "transcribe"]

_HOMES = {
    "Engine": "seqloom.serve.engine",
    "RunFolder": "seqloom.core.checkpoint.run_folder",
    "load": "seqloom.core.rooms",
    "play": "seqloom.systems.attention_agent.play",
    "recipe": "seqloom.core.rooms",
    "transcribe": "seqloom.systems.deep_speech2.transcribe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'seqloom' has no attribute '{name}'; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


_VERBS = {"seqloom.quantize": "seqloom.quantize.run", "seqloom.train": "seqloom.train.loop"}


class _Room(ModuleType):
    """`seqloom.train` is both the room of that name and the verb, so the module answers to a call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        verb = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_VERBS[self.__name__]), verb)(*args, **kwargs)


for _name in _VERBS:
    sys.modules[_name].__class__ = _Room
