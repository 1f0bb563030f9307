"""Fine-tuning a model folder with adapters, beside transformers + PEFT on the same folder and shapes.

    python -m benchmarks finetune --parameters 0.1 --threads 2

The folder is made here: random BF16 weights in the published layout, a byte-level tokenizer, and conversations from the
docstrings of Python's standard library. Both sides compute in FP32, recompute layers in the backward pass and take one
row at a time, in processes of their own that take turns (`--rounds`); `bytes` is the peak of the whole process. The
peer leaves Mamba's out_proj without adapters, since PEFT refuses them there; its routed experts have none either, so
the model is dense. Gate: before any step both give the same logits on the folder.
"""

import ast
import itertools
import json
import os
import sysconfig
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.case import Case, Line, NotHere
from benchmarks.child import call
from benchmarks.pairing import OURS, short, summary
from benchmarks.peers import agree_on_logits, open_transformers, require, versions

PEFT = "peft"
ROWS, LENGTH = 2, 512
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--parameters", type=float, default=0.1, help="billions (default: 0.1)")
    parser.add_argument("--steps", type=int, default=4, help="of every process, the first not timed (default: 4)")


def cases(options: Namespace) -> list[Case]:
    return [Case("finetune", measure)]


def measure(options: Namespace) -> Line:
    line: Line = {"rows": ROWS, "length": LENGTH, "steps": options.steps}
    sides = [OURS]
    if not options.alone:
        try:
            require(PEFT)
            sides.append(PEFT)
            line["versions"] = versions("transformers", PEFT)
        except NotHere as reason:
            line["skipped"] = {PEFT: str(reason)}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "base")
        line["parameters"] = make_folder(folder, options.parameters)
        if PEFT in sides:
            line["gate"] = gate(folder)
        times: dict[str, list[float]] = {side: [] for side in sides}
        peaks: dict[str, int] = {}
        for _ in range(1 if options.alone else options.rounds):
            for side in sides:
                found = call("benchmarks.finetune", f"run_{side}", str(folder), options.steps, options.threads)
                times[side].append(found["seconds"])
                peaks[side] = max(found["bytes"], peaks.get(side, 0))
                line["outcome"] = found["loss"] if side == OURS else line["outcome"]
    line |= {**summary(times), "bytes": peaks}
    line["tokens_per_second"] = {name: short(ROWS * LENGTH / taken[1]) for name, taken in line["seconds"].items()}
    if PEFT in peaks:
        line["bytes_ratio"] = {PEFT: short(peaks[PEFT] / peaks[OURS])}
    return line


def run_ours(base: str, steps: int, threads: int) -> dict[str, Any]:
    """`seqloom train finetune` as a user types it, at the shapes of the comparison."""
    from seqloom.cli.main import main as seqloom
    from seqloom.core.logs import read_metrics

    with tempfile.TemporaryDirectory() as room:
        os.environ["SEQLOOM_CACHE"] = str(Path(base).with_name("cache"))
        settings = {
            "train.steps": steps,
            "train.threads": threads,
            "task.sequence-length": LENGTH,
            "task.batch-rows": ROWS,
            "task.micro-rows": 1,
            "task.evaluate-rows": 1,
            "train.evaluate-every": steps,
            "train.save-every": steps,
            "train.log-every": 1,
            "precision.activations": "fp32",
        }
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        arguments = ["train", "finetune", "--model", base, "--data", str(Path(base, "chats.jsonl"))]
        seqloom([*arguments, "--out", str(Path(room, "run")), "--json", *options])
        taken = [record for record in read_metrics(Path(room, "run", "metrics.jsonl")) if record["kind"] == "train"]
    pairs = itertools.pairwise(taken)
    seconds = [(now["tokens"] - before["tokens"]) / now["tokens_per_second"] for before, now in pairs]
    return facts(seconds, taken[-1]["loss"])


def run_peft(base: str, steps: int, threads: int) -> dict[str, Any]:
    """The same shapes through transformers and PEFT, in the plainest loop."""
    import peft

    torch.set_num_threads(threads)
    model = open_transformers(Path(base), "fp32")
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    targets = ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    model.train()
    seconds, loss = [], 0.0
    for step in range(steps):
        start, loss = time.perf_counter(), 0.0
        for row in range(ROWS):
            generator = torch.Generator().manual_seed(step * ROWS + row)
            tokens = torch.randint(300, 4000, (1, LENGTH), generator=generator)
            part = model(tokens, labels=tokens, use_cache=False).loss / ROWS
            part.backward()
            loss += float(part.detach())
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return facts(seconds[1:], loss)


def facts(seconds: list[float], loss: float) -> dict[str, Any]:
    """Of one process; the first step, which warms caches up, is not among the seconds."""
    from seqloom.core.devices import used_bytes

    return {"seconds": median(seconds), "bytes": used_bytes(torch.device("cpu")), "loss": loss}


def gate(folder: Path) -> dict[str, float]:
    """Both read the folder alike."""
    import seqloom
    from seqloom.numerics.precision import PrecisionConfig, apply_precision

    tokens = torch.randint(300, 4000, (1, 64), generator=torch.Generator().manual_seed(0))
    model = seqloom.load(folder)
    apply_precision(model, PrecisionConfig(activations="fp32"))
    with torch.no_grad():
        theirs = open_transformers(folder, "fp32").eval()(tokens, use_cache=False).logits
        return agree_on_logits({OURS: model(tokens), PEFT: theirs}, "fp32")


def make_folder(folder: Path, billions: float) -> int:
    """Random weights in the published layout, with tokenizer and conversations; returns the number of parameters."""
    from seqloom.data.tokenizer import train_tokenizer
    from seqloom.numerics.precision import PrecisionConfig, apply_precision
    from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig
    from seqloom.systems.hybrid_lm.convert import convert

    width = 128 * round((billions * 1e9 / 210) ** 0.5 / 128)  # about 210 width² parameters beside the tables
    config = HybridConfig(
        pattern="M-M-M*-M-M-M*-M-M-M-M-M*-M-M-",
        vocab_size=8192,
        width=width,
        mamba=MambaConfig(heads=2 * width // 64, head_width=64, state_width=128, groups=2, chunk=64),
        attention=AttentionConfig(heads=width // 64, kv_heads=width // 128, head_width=64),
        mlp=MlpConfig(hidden_width=4 * width),
    )
    torch.manual_seed(0)
    model = config.build()
    apply_precision(model, PrecisionConfig(activations="fp32"))
    chats = conversations()
    tokenizer = train_tokenizer((chat[1]["content"] for chat in chats), config.vocab_size)
    tokenizer.templates["default"] = CHATML
    plain = folder.with_name("plain")
    plain.mkdir()
    model.write_folder(plain)
    tokenizer.save(plain)
    convert(plain, folder, dtype="bf16")
    (folder / "manifest.json").unlink()  # the folder gets one more file
    lines = (json.dumps({"messages": chat}) for chat in chats)
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def conversations() -> list[list[dict[str, str]]]:
    """What does a function do? Its docstring says."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)) and len(text) > 80:
                question = {"role": "user", "content": f"What does {path.stem}.{node.name} do?"}
                found.append([question, {"role": "assistant", "content": text}])
    return found
