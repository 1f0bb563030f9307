"""A training of seconds: the recipe `tiny` with narrow layers, few steps and a folder of small generated texts."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from seqloom.data.config import SourceConfig
from seqloom.systems.hybrid_lm.config import AttentionConfig, MambaConfig, MlpConfig, MoeConfig, MtpConfig, Run
from seqloom.systems.hybrid_lm.recipes import tiny


class Trained(NamedTuple):
    """A finished run and what the command line printed of it."""

    folder: Path
    lines: list[str]


def narrow(texts: Path) -> Callable[[], Run]:
    """A recipe with every layer kind of `tiny`, some ten thousand parameters, on the files of a folder."""
    run = tiny()
    model = replace(
        run.model,
        vocab_size=320,
        width=32,
        mamba=MambaConfig(heads=4, head_width=16, state_width=8, groups=2, chunk=16),
        attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
        mlp=MlpConfig(hidden_width=32),
        moe=MoeConfig(experts=4, top_k=2, expert_width=16, shared_width=16, latent_width=16),
        mtp=MtpConfig(depth=2),
    )
    data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),), valid_fraction=0.2)
    task = replace(run.task, data=data, sequence_length=32, batch_rows=4, evaluate_rows=8)
    train = replace(run.train, steps=3, log_every=1)
    return lambda: replace(run, model=model, task=task, train=train)


def write_texts(folder: Path, files: int = 40) -> Path:
    """Small Python-like files with enough repetition for a tokenizer to find merges."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(files):
        names = [draw.choice(["alpha", "beta", "gamma", "delta", "total", "index"]) for _ in range(12)]
        body = "\n".join(f"    {name} = {name} + {number} * {draw.randrange(100)}" for name in names)
        text = f"def compute_{number}({names[0]}):\n{body}\n    return {names[1]}\n"
        (folder / f"part_{number}.py").write_text(text, encoding="utf-8")
    return folder
