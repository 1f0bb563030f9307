"""What can be said of a model folder without reading a weight, for `seqloom show`."""

from pathlib import Path
from typing import Any

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.systems.deep_speech2.alphabet import Alphabet
from seqloom.systems.deep_speech2.config import DeepSpeech2Config
from seqloom.systems.deep_speech2.folder import WEIGHTS, read_shapes


def read_facts(folder: Path) -> tuple[DeepSpeech2Config, dict[str, Any]]:
    """The shapes of a model folder, and what it holds.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the configuration contradicts itself.
    """
    config, alphabet = read_shapes(folder), Alphabet.read(folder)
    entries = TensorFolder(folder).entries if (folder / WEIGHTS).exists() else {}
    return config, {
        "tensors": len(entries),
        "bytes": sum(entry.stop - entry.start for entry in entries.values()),
        "alphabet": " ".join(symbol.replace(" ", "_") for symbol in alphabet.symbols[:60] if symbol),
        "manifest": manifest.NAME if (folder / manifest.NAME).exists() else None,
    }
