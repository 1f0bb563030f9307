"""Can a model say again what it just read? A passage of held-out text, followed by itself.

A layer whose memory has a fixed size must have decided what to keep before it knew what would be asked; attention looks
it up. Measured on the second reading: how much of the first reading's surprise is gone, and how often the likeliest
token is the right one. Both readings are of the same tokens, so their difference is memory and not ease.
Paper: Nemotron-H and the Mamba-2 studies it rests on; pure state-space models fall behind in copying and recall.
"""

from typing import TYPE_CHECKING

from seqloom.core.config import config
from seqloom.core.progress import Progress
from seqloom.systems.hybrid_lm.config import Run, TextTaskConfig

if TYPE_CHECKING:
    import torch

    from seqloom.data.rows import RowSource
    from seqloom.systems.hybrid_lm.model import HybridLM
    from seqloom.systems.hybrid_lm.task import TextTask

SAVED, AGAIN, BEFORE = "recall_saved", "recall_accuracy", "recall_accuracy_before"
"""Share of the nats that the second reading saves; accuracy in the second and in the first reading."""

ROWS = 32


@config
class ProbedTaskConfig(TextTaskConfig):
    """Next-token prediction, whose evaluation also measures recall."""

    def build(self, run: Run, device: "torch.device", progress: Progress | None = None) -> "TextTask":
        from torch import nn

        from seqloom.systems.hybrid_lm.model import HybridLM
        from seqloom.systems.hybrid_lm.task import TextTask

        class ProbedTask(TextTask):
            def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
                assert isinstance(model, HybridLM)
                return super().evaluate(model, step) | recall(model, self.data.valid)

        return ProbedTask(run, device, progress)


def recall(model: "HybridLM", rows: "RowSource") -> dict[str, float]:
    """Measure a model, in evaluation mode and without gradients, on passages half as long as its training rows; nothing
    where the held-out text has no full row."""
    import torch
    from torch.nn import functional as F

    from seqloom.data.rows import NO_DOCUMENT

    count = min(ROWS, len(rows))
    found = rows.rows([index * len(rows) // count for index in range(count)])
    passages = found.tokens[(found.documents != NO_DOCUMENT).all(1), : found.tokens.shape[1] // 2]
    if not len(passages):
        return {}
    twice = torch.cat([passages, passages], dim=1).to(model.lm_head.weight.device)
    length, nats, right = passages.shape[1], [0.0, 0.0], [0, 0]
    for row in twice.split(1):
        logits = model(row)[0, :-1]
        surprise, hits = F.cross_entropy(logits, row[0, 1:], reduction="none"), logits.argmax(-1) == row[0, 1:]
        for reading, part in enumerate((slice(0, length - 1), slice(length, 2 * length - 1))):
            nats[reading] += float(surprise[part].sum())
            right[reading] += int(hits[part].sum())
    asked = len(passages) * (length - 1)
    return {SAVED: 1 - nats[1] / nats[0], AGAIN: right[1] / asked, BEFORE: right[0] / asked}
