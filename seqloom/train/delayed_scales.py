"""What delayed scales are made from, over the steps of a training and on the disk (`numerics.delayed`).

The amax of a step is that of all ranks, so histories are the same on each, whatever grid they form: a run goes on with
another one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.core.distributed import here
from seqloom.numerics.place import histories


def remember(model: Any) -> None:
    """Add what was seen in the step in work to every history, once the step is sure to be taken; collective."""
    found = histories(model).values()
    if not found:
        return
    nothing = torch.zeros((), device=next(model.parameters()).device)
    seen = torch.stack([nothing if amax is None else amax for _, amax in found])
    for (history, _), amax in zip(found, here().batch.most_(here().tensor.most_(seen)), strict=True):
        history.record(amax)


def remembered(model: Any) -> dict[str, Tensor]:
    """Every history, by "parameter.operand", the newest step first."""
    return {name: history.recent for name, (history, _) in histories(model).items()}


def recall(model: Any, saved: dict[str, Tensor]) -> None:
    """Go on from saved histories, of which one that is longer is cut; what was not saved has seen nothing."""
    for name, (history, _) in histories(model).items():
        length = len(history.recent)
        recent = saved.get(name, torch.zeros(0))[:length]
        history.recent = F.pad(recent, (0, length - len(recent)))
