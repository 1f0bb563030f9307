"""Next-token prediction on packed text: batches, loss, evaluation.

    loss = Σ CE(token_{t+1})  +  λ/D Σ_k N/N_k Σ CE_k(token_{t+k+1})  +  w Σ balance

The sums run over the tokens of a step; the loop divides once by N, the main targets of the whole step. Depth k of the
prediction block has N_k targets of its own, so its sum is weighted by N/N_k here and each CE_k ends as its own mean.
Paper: Nemotron 3 Super, pre-training objective.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seqloom.core.progress import Progress
from seqloom.data.prepare import prepare
from seqloom.data.rows import NO_TARGET, Rows
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.evaluate import measure
from seqloom.systems.hybrid_lm.loss import cross_entropy, targets_ahead
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.train.task import Loss


class Micro(NamedTuple):
    """A micro-batch, with what it must know of its whole step.

    Attributes:
        mtp_scale: per depth, main targets over targets of this depth, in the whole step.
        bits_scale: targets over (bytes · ln 2) in the whole step: turns nats per target into bits per byte.
    """

    rows: Rows
    mtp_scale: list[float]
    bits_scale: float


class TextTask:
    """Language modelling on the data of a run."""

    unit = "tokens"

    def __init__(self, run: Run, device: torch.device, progress: Progress | None = None) -> None:
        self.run = run
        self.device = device
        self.data = prepare(
            run.task.data,
            vocab_size=run.model.vocab_size,
            sequence_length=run.task.sequence_length,
            rows_total=run.train.steps * run.task.batch_rows,
            seed=run.seed,
            progress=progress,
        )
        self._token_bytes = torch.from_numpy(self.data.tokenizer.token_bytes).to(device)

    def next_batch(self, model: nn.Module, step: int) -> list[Micro]:
        """The micro-batches of a step: rows step·B to (step+1)·B of the run's fixed order."""
        count = self.run.task.batch_rows
        batch = self._to_device(self.data.train.rows(range(step * count, (step + 1) * count)))
        targets = _count(batch.targets)
        depths = self.run.model.mtp.depth if self.run.model.mtp else 0
        ahead = [_count(targets_ahead(batch, depth)) for depth in range(1, depths + 1)]
        mtp_scale = [targets / count_ahead if count_ahead else 0.0 for count_ahead in ahead]
        bits_scale = targets / max(1, self._bytes(batch.targets)) / math.log(2)
        size = self.run.task.micro_rows or count
        pieces = zip(*(tensor.split(size) for tensor in batch), strict=True)
        return [Micro(Rows(*piece), mtp_scale, bits_scale) for piece in pieces]

    def loss(self, model: nn.Module, micro: Micro) -> Loss:
        """Main, look-ahead and balance losses of one micro-batch, as sums."""
        assert isinstance(model, HybridLM)
        tokens, targets, documents = micro.rows
        hidden, routings = model.hidden(tokens, documents)
        nats = cross_entropy(model, hidden, targets)
        total = nats
        metrics = {"loss": nats.detach(), "bits_per_byte": nats.detach() * micro.bits_scale}
        if model.mtp is not None and self.run.model.mtp is not None:
            mtp = self.run.model.mtp
            results, more = model.look_ahead(hidden, tokens, documents, mtp.depth)
            routings = routings + more
            for depth, (ahead, scale) in enumerate(zip(results, micro.mtp_scale, strict=True), start=1):
                mean_sum = cross_entropy(model, ahead, targets_ahead(micro.rows, depth)) * scale
                total = total + mtp.loss_weight / mtp.depth * mean_sum
                metrics[f"mtp_{depth}_loss"] = mean_sum.detach()
        if self.run.model.moe is not None and routings:
            balance = torch.stack([routing.balance for routing in routings]).sum()
            total = total + self.run.model.moe.balance_weight * balance
            metrics["balance_loss"] = balance.detach() / len(routings)
            for routing in routings:
                routing.router.load += routing.counts
        return Loss(total, _count(targets), metrics)

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Move every router's selection bias by the load of the whole step; reports the worst MaxVio."""
        assert isinstance(model, HybridLM)
        layers = model.expert_layers()
        return {"max_vio": max(moe.gate.rebalance(moe.bias_rate) for moe in layers)} if layers else {}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Loss in nats per token, bits per byte and perplexity on held-out rows."""
        assert isinstance(model, HybridLM)
        task = self.run.task
        size = task.micro_rows or task.batch_rows
        return measure(model, self.data.valid, task.evaluate_rows, size, self._token_bytes)

    def report(self) -> dict[str, Any]:
        return self.data.report

    def fingerprint(self) -> str:
        return self.data.fingerprint

    def write_assets(self, folder: Path) -> None:
        """Tokenizer files and generation settings; the token ids in config.json become those of the tokenizer."""
        tokenizer = self.data.tokenizer
        tokenizer.save(folder)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
        path = folder / "config.json"
        fields = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(fields | ids, indent=2) + "\n", encoding="utf-8")
        generation = ids | {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")

    def _to_device(self, rows: Rows) -> Rows:
        return Rows(*(tensor.to(self.device, non_blocking=True) for tensor in rows))

    def _bytes(self, targets: Int[Tensor, "B T"]) -> int:
        return int(self._token_bytes[targets[targets != NO_TARGET]].sum())


def _count(targets: Tensor) -> int:
    return int((targets != NO_TARGET).sum())
