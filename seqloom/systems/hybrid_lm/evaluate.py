"""Measuring a language model on rows of text: loss, bits per byte, perplexity."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seqloom.core.config import parse, read_yaml
from seqloom.core.devices import pick_device
from seqloom.core.distributed import here
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.core.rooms import load
from seqloom.data.config import DataConfig, SourceConfig
from seqloom.data.prepare import Prepared, prepare
from seqloom.data.rows import NO_TARGET, Rows, RowSource
from seqloom.metrics.language import bits_per_byte, perplexity
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.loss import cross_entropy
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.train.state import RUN

ROW_TOKENS = 1024
"""Tokens per row for a model that no run here trained."""

BATCH_ROWS = 8


@torch.no_grad()
def measure(model: HybridLM, rows: RowSource, limit: int, batch_rows: int, token_bytes: Tensor) -> dict[str, float]:
    """Loss in nats per token, bits per byte and perplexity over at most `limit` rows, spread evenly over all.

    Where several ranks train the model each measures its share, and all get the result.

    Args:
        batch_rows: rows per forward pass of one rank; changes memory and speed only.
        token_bytes: bytes of text that each token id stands for.
    """
    device = model.lm_head.weight.device
    token_bytes = token_bytes.to(device)
    count = min(len(rows), limit)
    nats, tokens, n_bytes = 0.0, 0, 0
    positions = [index * len(rows) // count for index in range(count)]
    ranks = here()
    for start in range(0, count, batch_rows * ranks.data.count):
        first = start + batch_rows * ranks.data.index
        mine = positions[first : first + batch_rows]
        whole = rows.rows(mine or positions[:1])  # who has nothing left takes part all the same, without a target
        batch = Rows(*(ranks.context.mine(part.to(device), 1) for part in whole))
        if not mine:
            batch.targets.fill_(NO_TARGET)
        hidden, _ = model.hidden(batch.tokens, batch.documents)
        nats += float(cross_entropy(model, hidden, batch.targets))
        targets = batch.targets[batch.targets != NO_TARGET]
        tokens += len(targets)
        n_bytes += int(token_bytes[targets].sum())
    nats, *counts = ranks.batch.total([nats, tokens, n_bytes])
    tokens, n_bytes = map(int, counts)
    return {
        "loss": nats / tokens,
        "bits_per_byte": bits_per_byte(nats, n_bytes),
        "perplexity": perplexity(nats, tokens),
        "tokens": tokens,
        "bytes": n_bytes,
    }


@torch.no_grad()
def most_likely(model: HybridLM, prompt: Int[Tensor, "1 T"], tokens: int) -> list[int]:
    """The so many tokens that follow when each is the likeliest one."""
    states = model.new_states(1)
    chosen: list[int] = []
    while len(chosen) < tokens:
        hidden, _ = model.hidden(prompt, states=states)
        prompt = model.head(hidden[:, -1:]).argmax(-1)
        chosen.append(int(prompt))
    return chosen


def evaluate(
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    rows: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model folder on its run's held-back text, or on all of the text named.

    Args:
        sources: text to measure on; without any, the folder must be a run folder.
        rows: most rows to measure; None takes all.
    Raises:
        ConfigError: neither a run nor sources say what to measure on.
        DataError, CheckpointError: the text or the folder cannot be used.
    """
    model = load(folder).to(pick_device("auto"))
    prepared = text_for(folder, model.vocab_size, sources, progress)
    source = prepared.every if sources else prepared.valid
    token_bytes = torch.from_numpy(prepared.tokenizer.token_bytes)
    return measure(model, source, len(source) if rows is None else rows, BATCH_ROWS, token_bytes)


def text_for(
    folder: Path, vocab_size: int, sources: tuple[SourceConfig, ...] = (), progress: Progress | None = None
) -> Prepared:
    """The text of a folder's run, or the text named, in the tokens of the folder.

    Args:
        sources: without any, the folder must be a run folder.
    Raises:
        ConfigError: neither a run nor sources say which text.
        DataError: the text cannot be used.
    """
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN)) if (folder / RUN).exists() else None
    if run is None and not sources:
        raise ConfigError(
            f"{folder}: no {RUN} says what this model was trained on; name text with --data PATH (or --calibrate PATH "
            "to quantize)"
        )
    data = run.task.data if run else DataConfig(sources=sources)
    data = replace(data, sources=sources or data.sources, phases=(), tokenizer=str(folder))
    return prepare(
        data,
        vocab_size=vocab_size,
        sequence_length=run.task.sequence_length if run else ROW_TOKENS,
        rows_total=1,
        seed=0,
        progress=progress,
    )
