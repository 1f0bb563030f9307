"""llama.cpp as a peer, with the same weights through a GGUF file; benchmark-only, from the package llama-cpp-python.

It is driven by its C interface, a batch of tokens at a time, without the sampling and bookkeeping of its Python side.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import require

LLAMA = "llama.cpp"
PACKAGE = "llama_cpp"
FORMATS = {"fp32": "fp32", "bf16": "bf16", "int8": "q8_0", "nvfp4": "q4_0"}
"""Our format -> the format of theirs that has about as many bits."""
_PIECE = 512


class Llama:
    """A model with so many sequences, each of at most so many tokens.

    Raises:
        NotHere: the package is not installed.
    """

    def __init__(self, file: Path, rows: int, context: int, threads: int, vocab_size: int) -> None:
        require(PACKAGE)
        import llama_cpp

        self._api: Any = llama_cpp
        self._rows, self._vocab_size = rows, vocab_size
        _quieten()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        assert self._model, f"llama.cpp cannot open {file}"
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = rows * (-(-context // 256) * 256), rows
        wanted.n_batch = wanted.n_ubatch = _PIECE
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        assert self._context, f"llama.cpp has no context for {file}"
        self._batch = llama_cpp.llama_batch_init(max(_PIECE, rows), 0, 1)
        self.length = 0
        """Tokens that every row has seen."""

    def feed(self, tokens: Tensor) -> Tensor:
        """Read [B, T] more tokens of all rows; logits after the last, [B, V]."""
        if tokens.shape[1] == 1:
            found = self._decode([(row, int(token)) for row, token in enumerate(tokens[:, 0].tolist())], 1)
        else:
            found = []
            for row, text in enumerate(tokens.tolist()):
                for start in range(0, len(text), _PIECE):
                    piece = [(row, token) for token in text[start : start + _PIECE]]
                    last = self._decode(piece, int(start + _PIECE >= len(text)), start)
                found += last
        self.length += tokens.shape[1]
        return torch.stack(found)

    def clear(self) -> None:
        """Forget everything."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self.length = 0

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def _decode(self, fed: list[tuple[int, int]], wanted: int, offset: int = 0) -> list[Tensor]:
        """One call on (row, token) pairs: the next token of each row, or consecutive ones of one.

        Args:
            wanted: 0 for no logits, else those of every row's last token.
            offset: place of the first token after what its row has seen.
        """
        batch, seen = self._batch, dict[int, int]()
        batch.n_tokens = len(fed)
        last = {row: index for index, (row, _) in enumerate(fed)}
        for index, (row, token) in enumerate(fed):
            batch.token[index], batch.n_seq_id[index] = token, 1
            batch.pos[index] = self.length + offset + seen.get(row, 0)
            seen[row] = seen.get(row, 0) + 1
            batch.seq_id[index][0] = row
            batch.logits[index] = int(bool(wanted) and last[row] == index)
        status = self._api.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode gave {status}"
        if not wanted:
            return []
        return [self._logits(index) for index in last.values()]

    def _logits(self, index: int) -> Tensor:
        found = self._api.llama_get_logits_ith(self._context, index)
        memory = (ctypes.c_float * self._vocab_size).from_address(ctypes.addressof(found.contents))
        return torch.frombuffer(memory, dtype=torch.float32).clone()


@functools.cache
def _quieten() -> Any:
    """It logs to standard error otherwise; the callback must stay referenced."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    return silent
