"""Next-token prediction on packed text: batches, loss, evaluation.

    loss = Σ CE(token_{t+1})  +  λ/D Σ_k N/N_k Σ CE_k(token_{t+k+1})  +  w Σ balance  (+ z Σ logsumexp²)

The sums run over the tokens of a step; the loop divides once by N, the main targets of the whole step. Depth k of the
prediction block has N_k targets of its own, so its sum is weighted by N/N_k here and each CE_k ends as its own mean.
Paper: Nemotron 3 Super, pre-training objective.
"""

import json
import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seqloom.core.distributed import here
from seqloom.core.progress import Progress
from seqloom.data.prepare import prepare
from seqloom.data.report import report_lines
from seqloom.data.rows import NO_TARGET, Rows
from seqloom.nn.sigma_reparam import advance
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.evaluate import measure, most_likely
from seqloom.systems.hybrid_lm.fine_tune import inherited_settings
from seqloom.systems.hybrid_lm.leaks import refuse_leaks
from seqloom.systems.hybrid_lm.loss import cross_entropy, main_loss, targets_ahead
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.systems.hybrid_lm.narrow import refuse_narrow_tensors
from seqloom.train.task import Loss

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Of a text that is written for people to see what has been learned."""


class Micro(NamedTuple):
    """A micro-batch, with what it must know of its whole step.

    Attributes:
        mtp_scale: per depth, main targets over targets of this depth, in the whole step.
        bits_scale: targets over (bytes · ln 2) in the whole step: turns nats per target into bits per byte.
        balance_scale: targets over tokens in the whole step: every token is routed, learned or not.
        ahead: targets of each depth of the prediction block.
    """

    rows: Rows
    mtp_scale: list[float]
    bits_scale: float
    balance_scale: float
    ahead: list[Int[Tensor, "B T"]]

    def split(self, size: int) -> list["Micro"]:
        """The same in pieces of so many rows."""
        pieces = zip(*(tensor.split(size) for tensor in (*self.rows, *self.ahead)), strict=True)
        return [self._replace(rows=Rows(*piece[:3]), ahead=list(piece[3:])) for piece in pieces]


class TextTask:
    """Language modelling on the data of a run."""

    unit = "tokens"
    shown: ClassVar = {"bits_per_byte": "bits/byte"}

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
        self._inherited = inherited_settings(run)

    def check(self, model: nn.Module) -> None:
        """Refuse a model whose documents would leak into each other, or whose sensitive tensors are too narrow."""
        assert isinstance(model, HybridLM)
        refuse_narrow_tensors(model)
        refuse_leaks(model)

    def next_batch(self, model: nn.Module, step: int) -> list[Micro]:
        """The micro-batches of a step: rows step·B to (step+1)·B of the run's fixed order.

        Each data rank takes its share in one piece, and each context rank its stretch of every row."""
        count = self.run.task.batch_rows
        batch = self._to_device(self.data.train.rows(range(step * count, (step + 1) * count)))
        targets = _count(batch.targets)
        depths = self.run.model.mtp.depth if self.run.model.mtp else 0
        ahead = [targets_ahead(batch, depth) for depth in range(1, depths + 1)]
        mtp_scale = [targets / count_ahead if count_ahead else 0.0 for count_ahead in map(_count, ahead)]
        bits_scale = targets / max(1, self._bytes(batch.targets)) / math.log(2)
        balance_scale = targets / max(1, int((batch.documents >= 0).sum()))
        mine = Micro(Rows(*map(_mine, batch)), mtp_scale, bits_scale, balance_scale, [_mine(later) for later in ahead])
        return mine.split(self.run.task.micro_rows or count)

    def smallest(self, batch: list[Micro]) -> list[Micro]:
        """The batch row by row."""
        return [row for micro in batch for row in micro.split(1)]

    def loss(self, model: nn.Module, micro: Micro) -> Loss:
        """Main, look-ahead and balance losses of one micro-batch, as sums."""
        assert isinstance(model, HybridLM)
        tokens, targets, documents = micro.rows
        hidden, routings = model.hidden(tokens, documents)
        total, nats = main_loss(model, hidden, targets)
        terms = {"loss": total}
        metrics = {"loss": nats, "bits_per_byte": nats * micro.bits_scale}
        mtp = self.run.model.mtp
        if model.mtp is not None and mtp is not None and mtp.loss_weight > 0:
            results, more = model.look_ahead(hidden, tokens, documents, mtp.depth)
            routings = routings + more
            for depth, (ahead, later, scale) in enumerate(
                zip(results, micro.ahead, micro.mtp_scale, strict=True), start=1
            ):
                mean_sum = cross_entropy(model, ahead, later) * scale
                weighted = mtp.loss_weight / mtp.depth * mean_sum
                total = total + weighted
                if scale > 0:
                    terms[f"mtp_{depth}_loss"] = weighted
                metrics[f"mtp_{depth}_loss"] = mean_sum.detach()
        if self.run.model.moe is not None and routings:
            balance = torch.stack([routing.balance for routing in routings]).sum() * micro.balance_scale
            weighted = self.run.model.moe.balance_weight * balance
            total = total + weighted
            if self.run.model.moe.balance_weight > 0:
                terms["balance_loss"] = weighted
            metrics["balance_loss"] = balance.detach() / len(routings)
            for routing in routings:
                routing.router.load += routing.counts
        return Loss(total, _count(targets), metrics, terms)

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Move every router's selection bias by the load of the whole step, and the singular vectors of reparametrised
        matrices; reports the worst MaxVio."""
        assert isinstance(model, HybridLM)
        advance(model)
        layers = model.expert_layers()
        for moe in layers:
            here().batch.sum_(moe.gate.load)
        return {"max_vio": max(moe.gate.rebalance(moe.bias_rate) for moe in layers)} if layers else {}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Loss in nats per token, bits per byte and perplexity on held-out rows."""
        assert isinstance(model, HybridLM)
        task = self.run.task
        size = task.micro_rows or task.batch_rows
        return measure(model, self.data.valid, task.evaluate_rows, size, self._token_bytes)

    def sample(self, model: nn.Module) -> dict[str, str]:
        """The beginning of the first held-out row, and what the model finds most likely to follow."""
        assert isinstance(model, HybridLM)
        prompt = self.data.valid.rows([0]).tokens[:, :PROMPT_TOKENS].to(self.device)
        decode = self.data.tokenizer.decode
        return {"prompt": decode(prompt[0].tolist()), "text": decode(most_likely(model, prompt, SAMPLE_TOKENS))}

    def report(self) -> dict[str, Any]:
        return self.data.report

    def summary(self) -> list[str]:
        return report_lines(self.data.report)

    def fingerprint(self) -> str:
        return self.data.fingerprint

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        assert not state, "rows are a pure function of seed and step"

    def close(self) -> None:
        pass

    def write_assets(self, folder: Path) -> None:
        """Tokenizer files and generation settings; the token ids in config.json become those of the tokenizer.

        What the folder says that training began with, such as further ends of an answer, is kept."""
        tokenizer = self.data.tokenizer
        tokenizer.save(folder)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
        path = folder / "config.json"
        fields = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(fields | ids | self._inherited.config, indent=2) + "\n", encoding="utf-8")
        generation = self._inherited.generation or ids | {"do_sample": True, "temperature": 1.0, "top_p": 0.95}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")

    def _to_device(self, rows: Rows) -> Rows:
        return Rows(*(tensor.to(self.device, non_blocking=True) for tensor in rows))

    def _bytes(self, targets: Int[Tensor, "B T"]) -> int:
        return int(self._token_bytes[targets[targets != NO_TARGET]].sum())


def _mine(tensor: Int[Tensor, "B T"]) -> Int[Tensor, "b t"]:
    """What this rank learns from of a whole batch."""
    return here().context.mine(here().data.mine(tensor, 0), 1)


def _count(targets: Tensor) -> int:
    return int((targets != NO_TARGET).sum())
