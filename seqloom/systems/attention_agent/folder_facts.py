"""What can be said of an agent's folder without reading a weight. For `seqloom show`."""

from pathlib import Path
from typing import Any

from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.systems.attention_agent.config import AgentConfig
from seqloom.systems.attention_agent.folder import read_agent_config


def read_facts(folder: Path) -> tuple[AgentConfig, dict[str, Any]]:
    """Settings of the agent, and what the folder holds.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the configuration contradicts itself.
    """
    config, entries = read_agent_config(folder), TensorFolder(folder).entries
    return config, {
        "number_format": "fp32",
        "tensors": len(entries),
        "bytes": sum(entry.stop - entry.start for entry in entries.values()),
        "manifest": manifest.NAME if (folder / manifest.NAME).exists() else None,
    }
