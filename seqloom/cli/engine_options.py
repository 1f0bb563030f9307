"""How `generate` and `chat` open the engine; free of torch, so that their help is instant."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqloom.core.checkpoint.identity import identity
from seqloom.core.config import config
from seqloom.core.rooms import newest
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Weights

if TYPE_CHECKING:
    from seqloom.serve.engine import Engine

DraftTokens = int | Literal["auto"]


@config
class EngineOptions:
    """What the engine computes with, and how far ahead it guesses."""

    draft_tokens: DraftTokens = 0
    """Tokens to guess ahead (faster, never different); auto finds out how many pay."""
    weights: Weights = "as_stored"
    """Format that the matrices are kept and read in; fewer bits are faster."""
    cache_tokens: int | None = None
    """Most tokens that a prompt and its answer have together, and that all of those under way have; 65,536 if not
    given."""
    kv_cache: KVFormat | None = None
    """What to store keys and values in; as the model has it, if not given."""
    ssm_state: SsmFormat | None = None
    """What to store Mamba states in; _sr rounds stochastically."""

    def open(self, run: Path) -> "Engine":
        """The engine of a run or model folder.

        Raises:
            as `Engine`.
        """
        from seqloom.serve.engine import Engine

        return Engine(
            run,
            weights=self.weights,
            cache_tokens=self.cache_tokens,
            kv_cache=self.kv_cache,
            ssm_state=self.ssm_state,
        )

    def answering(self, run: Path) -> str:
        """What answers: the model, by a look at its files, and the formats it computes in. Another text, other answers.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        folder, _ = newest(run)
        return json.dumps([identity(folder), self.weights, self.kv_cache, self.ssm_state])


AS_STORED = EngineOptions()
"""The model as it is, without guesses."""
