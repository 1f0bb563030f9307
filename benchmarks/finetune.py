"""Fine-tuning a model folder with adapters, beside transformers + PEFT on the same folder and shapes. A JSON line each.

    python benchmarks/finetune.py --parameters 0.1 --out benchmarks/results/finetune_laptop_2026-11-26.jsonl

The folder is made here: random BF16 weights in the published layout, a byte-level tokenizer, and conversations from the
docstrings of Python's standard library. Both sides compute in FP32, recompute layers in the backward pass, take one
row at a time, and run in processes of their own, in turns; memory is the peak of the whole process. The peer leaves
Mamba's out_proj without adapters, since PEFT refuses them there; its routed experts have none either, so the model is
dense. Gate: before any step both give the same logits on the folder (median difference relative to their scale).
"""

import argparse
import ast
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch

from machine import place

ROWS, LENGTH = 2, 512
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=0.1, help="billions")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the lines to this file")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"ours": ours, "peer": peer}[args.side](args.folder, args.steps)))
        return
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "base")
        size = make_folder(folder, args.parameters)
        gap = gate(folder)
        lines = []
        for side in ("ours", "peer"):
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            lines.append({"case": "finetune", "side": side, "parameters": size, "gate": gap, **facts})
    shared = {"rows": ROWS, "length": LENGTH, "steps": args.steps, **place(torch.device("cpu"))}
    text = "".join(json.dumps(line | shared) + "\n" for line in lines)
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")


def ours(folder: Path, steps: int) -> dict[str, float]:
    """`seqloom train finetune` as a user types it, at the shapes of the comparison."""
    from seqloom.cli.main import main as seqloom
    from seqloom.core.logs import read_metrics

    os.environ["SEQLOOM_CACHE"] = str(folder.parent / "cache")
    run = folder.parent / "run"
    settings = {
        "train.steps": steps,
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
    arguments = ["train", "finetune", "--model", str(folder), "--data", str(folder / "chats.jsonl")]
    seqloom([*arguments, "--out", str(run), "--json", *options])
    taken = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    pairs = itertools.pairwise(taken)
    seconds = [(now["tokens"] - before["tokens"]) / now["tokens_per_second"] for before, now in pairs]
    return speed(seconds) | {"loss_first": taken[0]["loss"], "loss_last": taken[-1]["loss"]}


def peer(folder: Path, steps: int) -> dict[str, float]:
    """The same shapes through transformers and PEFT, in the plainest loop."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    targets = ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    model.train()
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        for row in range(ROWS):
            generator = torch.Generator().manual_seed(step * ROWS + row)
            tokens = torch.randint(300, 4000, (1, LENGTH), generator=generator)
            (model(tokens, labels=tokens, use_cache=False).loss / ROWS).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    return speed(seconds[1:]) | versions


def speed(seconds: list[float]) -> dict[str, float]:
    """The first step is left out: it warms caches up."""
    median = statistics.median(seconds)
    return {
        "step_seconds": round(median, 3),
        "step_seconds_spread": round(max(seconds) - min(seconds), 3),
        "tokens_per_second": round(ROWS * LENGTH / median, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def gate(folder: Path) -> float:
    """Both read the folder alike; transformers' floor of dt is lifted, as docs/published_models.md explains."""
    import transformers

    import seqloom

    tokens = torch.randint(300, 4000, (1, 64), generator=torch.Generator().manual_seed(0))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "dt_bias"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        model = seqloom.load(folder)
        for module in model.modules():
            if hasattr(module, "format"):
                module.format = "fp32"
        gap = float((model(tokens) - expected).abs().median() / expected.std())
    if gap > 1e-4:
        raise SystemExit(f"the two sides read the folder differently: {gap}")
    return gap


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


if __name__ == "__main__":
    main()
