"""What can be said of a model folder without reading a weight: the number format and layout of its tensors, whether
they are as many as its configuration asks for, and what lies beside them. For `seqloom show`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.rooms import is_adapter
from seqloom.systems.hybrid_lm.adapter import STEM, read_settings
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import HybridConfig
from seqloom.systems.hybrid_lm.disk_weights import CONFIG, DiskWeights
from seqloom.systems.hybrid_lm.public_config import open_public


def read_facts(folder: Path) -> tuple[HybridConfig, dict[str, Any]]:
    """The shapes of a model folder, and what it holds; of adapters, the shapes of the model they sit on.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the configuration contradicts itself or asks for what is not built here.
    """
    home = folder if (folder / CONFIG).exists() else Path(read_settings(folder).base)
    public = open_public(home / CONFIG)
    facts = {
        "number_format": public.format,
        **(_adapter(folder) if is_adapter(folder) else _weights(folder)),
        "tokenizer": _first(folder, "tokenizer.json", "tokenizer.model"),
        "chat_template": _chat_template(folder),
        "generation_settings": _first(folder, "generation_config.json"),
        "manifest": _first(folder, manifest.NAME),
        "unknown_fields": sorted(public.unknown),
    }
    return public.config, facts


def _weights(folder: Path) -> dict[str, Any]:
    """Layout and number of the tensors, as they are stored; nothing where there are none."""
    files = len(list(folder.glob("model*.safetensors")))
    if not files:
        return {"layout": None}
    weights = DiskWeights(folder, verified=True)  # nothing is read that a digest would have to vouch for
    stored = {weight.source: weight for weight in weights.entries.values()}
    stacked = any(weight.expert is not None for weight in stored.values())
    cost = budget(weights.public.config)
    layout = "experts stacked" if stacked else "one tensor for each matrix"
    formats = Counter(
        weight.packed.format if weight.packed else str(weight.dtype).removeprefix("torch.")
        for weight in stored.values()
    )
    return {
        "layout": layout,
        "files": files,
        "bytes": weights.stored_bytes,
        "tensors": len(stored),
        "expected_tensors": cost.stacked_tensors if stacked else cost.tensors,
        "stored_as": ", ".join(f"{count:,} in {name}" for name, count in formats.most_common()),
    }


def _adapter(folder: Path) -> dict[str, Any]:
    settings, entries = read_settings(folder), TensorFolder(folder, STEM).entries
    return {
        "adapter_on": settings.base,
        "rank": settings.rank,
        "scale": settings.scale,
        "bytes": sum(entry.stop - entry.start for entry in entries.values()),
        "tensors": len(entries),
    }


def _chat_template(folder: Path) -> str | None:
    """The file that holds the template: one of its own, or the older place among the tokenizer's settings."""
    settings = folder / "tokenizer_config.json"
    if settings.exists() and not (folder / "chat_template.jinja").exists():
        return settings.name if read_json(settings).get("chat_template") else None
    return _first(folder, "chat_template.jinja")


def _first(folder: Path, *names: str) -> str | None:
    return next((name for name in names if (folder / name).exists()), None)
