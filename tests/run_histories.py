"""Run folders as a training leaves them, without the training: for reports and comparisons."""

import json
from pathlib import Path
from typing import Any

from seqloom.core.logs import MetricsLog

MODULES = [f"backbone.layers.{number}.mixer.in_proj" for number in range(12)]


def train_record(step: int, scale: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "kind": "train",
        "loss": scale * (2 + 6 / (1 + step / 10)),
        "bits_per_byte": scale * (1 + 2 / (1 + step / 10)),
        "objective": 9.0,
        "max_vio": 1.5,
        "lr": 1e-3,
        "grad_norm": 0.5 + 1 / step,
        "tokens": 2048 * step,
        "tokens_per_second": 1000.0 + step % 7,
        "seconds": 2.0 * step,
        "memory_bytes": 700_000_000 + step,
    }


def monitor_record(step: int) -> dict[str, Any]:
    linears = {f"{module}.output_norm": 1.0 + step * number / 100 for number, module in enumerate(MODULES)}
    few = {"backbone.layers.3.mixer.logit_max": 0.1 * step, "backbone.layers.4.mixer.gate.max_vio": 2.0}
    return {"step": step, "kind": "monitor", **linears, **few, "backbone.layers.0.zero_gradients": 0.25}


def add_sample(folder: Path, step: int, prompt: str, text: str) -> None:
    MetricsLog(folder / "metrics.jsonl").append({"step": step, "kind": "sample", "prompt": prompt, "text": text})


def write_run(folder: Path, steps: int = 40, wanted: int = 40, scale: float = 1.0, name: str = "tiny") -> Path:
    """A run with one record in ten steps and two validations."""
    folder.mkdir(parents=True)
    settings = f"system: hybrid_lm\nname: {name}\ntrain:\n  steps: {wanted}\n  lr: {scale}\n  trackers: []\n"
    (folder / "run.yaml").write_text(settings, encoding="utf-8")
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        if step == 1 or step % 10 == 0 or step == steps:
            log.append(train_record(step, scale))
            log.append(monitor_record(step))
        if step % 20 == 0:
            valid = {"loss": scale * (3 - step / 100), "perplexity": 20.0, "tokens": 4096}
            log.append({"step": step, "kind": "valid", **valid})
    source = {
        "source": "texts/", "documents": 120, "tokens": 12_345, "bytes": 40_000, "bytes_per_token": 3.24, "share": 1.0,
        "repeats": 0.5, "skipped": {"duplicate": 4},
    }  # fmt: skip
    example = [{"document": 0, "target": False, "text": "said"}, {"document": 0, "target": True, "text": "learned"}]
    data = {"tokenizer": {"entries": 320}, "rows": 160, "sources": [source], "example": example}
    machine = {"parameters": 4_900_000, "device": "cpu", "machine": "A Processor", "cores": 2}
    for file, facts in (("data.json", data), ("formats.json", {"head": "bf16"}), ("machine.json", machine)):
        (folder / file).write_text(json.dumps(facts), encoding="utf-8")
    return folder
