"""A regression small enough to train hundreds of times, in which every part of the loop has something to lose.

Rows count different numbers of units, dropout draws from the global generator in training, evaluation draws from it
too, and the model has parameters of every optimizer group.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.config import Ge, config
from seqloom.core.seeds import generator
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from seqloom.train.run import Run
from seqloom.train.task import Loss

Fault = Literal["nan_loss", "nan_gradient", "no_units"]


class Matrix(nn.Linear):
    hidden_matrices = ("weight",)


class ToyModel(nn.Module):
    def __init__(self, width: int, dropout: float, idle: bool) -> None:
        super().__init__()
        self.inner = Matrix(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.outer = Matrix(2 * width, width, bias=False)
        self.head = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.checkpoint_layers = False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("kept", torch.arange(3.0))
        if idle:
            self.forgotten = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(self.dropout(torch.tanh(self.norm(self.inner(x)))))).squeeze(-1)

    def write_folder(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": "toy"}), encoding="utf-8")
        save_tensors(folder / "model.safetensors", self.state_dict())

    def read_folder(self, folder: Path) -> None:
        self.load_state_dict(load_tensors(folder / "model.safetensors"))


@config
class ToyModelConfig:
    width: int = 6
    dropout: float = 0.2
    idle: bool = False
    needed_bytes: int = 1000

    def build(self) -> ToyModel:
        return ToyModel(self.width, self.dropout, self.idle)

    def training_bytes(self, run: "ToyRun") -> int:
        return self.needed_bytes


class ToyTask:
    unit = "samples"
    shown: ClassVar = {}

    def __init__(self, run: "ToyRun") -> None:
        self.run = run
        self.place = torch.zeros(())
        self.last = -1
        self.closed = False

    def check(self, model: nn.Module) -> None:
        pass

    def next_batch(self, model: nn.Module, step: int) -> list[tuple[int, Tensor, Tensor]]:
        source = generator(self.run.seed, "toy", step)
        rows = torch.randn(self.run.task.rows, 5, self.run.model.width, generator=source)
        counted = torch.rand(self.run.task.rows, 5, generator=source) < torch.rand(
            self.run.task.rows, 1, generator=source
        )
        pieces = zip(rows.split(self.run.task.micro), counted.split(self.run.task.micro), strict=True)
        pieces = [(step, *piece) for piece in pieces]
        return self._walked(step, pieces) if self.run.task.walks else pieces

    def _walked(self, step: int, pieces: list[tuple[int, Tensor, Tensor]]) -> list[tuple[int, Tensor, Tensor]]:
        """A batch that depends on the model and on all batches before it, as in reinforcement learning."""
        if step != self.last:
            self.last, self.place = step, self.place + sum(rows.mean() for _, rows, _ in pieces)
        return [(step, rows + torch.tanh(self.place), counted) for _, rows, counted in pieces]

    def smallest(self, batch: list[tuple[int, Tensor, Tensor]]) -> list[tuple[int, Tensor, Tensor]]:
        return [(step, *piece) for step, *whole in batch for piece in zip(*(t.split(1) for t in whole), strict=True)]

    def loss(self, model: nn.Module, micro: tuple[int, Tensor, Tensor]) -> Loss:
        step, rows, counted = micro
        faulty = 0 <= step - self.run.task.fault_step < self.run.task.fault_length
        if faulty:
            if self.run.task.fault == "no_units":
                counted = torch.zeros_like(counted)
            if self.run.task.fault == "nan_loss":
                rows = rows / 0
        predicted = model(rows)
        if faulty and self.run.task.fault == "nan_gradient":
            predicted.register_hook(lambda gradient: gradient * torch.nan)
        squares = torch.where(counted, (predicted - rows.sum(-1) / 2) ** 2, 0.0).sum()
        model.seen += int(counted.sum())
        terms = {"squares": squares}
        if self.run.task.idle_term:
            terms["idle"] = squares.detach() + 0 * squares
        metrics = {"size": rows.abs().mean(-1)[counted].sum()}
        return Loss(squares, int(counted.sum()), metrics, terms)

    def after_step(self, model: nn.Module, step: int) -> dict[str, float]:
        seen = int(model.seen)  # of this step alone, whatever was tried before it
        model.seen.zero_()
        return {"after": float(step), "seen": float(seen)}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        rows = torch.randn(20, self.run.model.width)
        return {"loss": float(((model(rows) - rows.sum(-1) / 2) ** 2).mean())}

    def sample(self, model: nn.Module) -> None:
        return None

    def report(self) -> dict[str, Any]:
        return {"rows": self.run.task.rows}

    def summary(self) -> list[str]:
        return [f"{self.run.task.rows} rows a step"]

    def write_assets(self, folder: Path) -> None:
        (folder / "asset.txt").write_text("asset", encoding="utf-8")

    def fingerprint(self) -> str:
        return self.run.task.digest

    def state(self) -> dict[str, Tensor]:
        return {"place": self.place.clone(), "last": torch.tensor(self.last)} if self.run.task.walks else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state:
            self.place, self.last = state["place"], int(state["last"])

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@config
class ToyTaskConfig:
    memory_settings = ("task.micro",)

    rows: Annotated[int, Ge(1)] = 12
    micro: int = 12
    fault: Fault | None = None
    fault_step: int = -1
    fault_length: int = 1
    idle_term: bool = False
    walks: bool = False
    digest: str = "data"

    def build(self, run: "ToyRun", device: torch.device, progress: Any = None) -> ToyTask:
        return ToyTask(run)


@config
class ToyRun(Run):
    system: Literal["toy"] = "toy"
    name: str = "toy"
    model: ToyModelConfig = ToyModelConfig()
    task: ToyTaskConfig = ToyTaskConfig()
    train: TrainConfig = TrainConfig(
        steps=14,
        optimizer=OptimizerConfig(kind="muon", lr=0.01),
        schedule=ScheduleConfig(warmup_steps=3, decay_fraction=0.5),
        evaluate_every=4,
        save_every=5,
        log_every=2,
        monitor_every=None,
        device="cpu",
    )
