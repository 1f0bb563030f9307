"""Keys and values of one attention layer for all rows of an engine, in pages that rows are lent and give back.

A page holds the same number of tokens in every layer, so one table of pages per row serves them all, and who owns which
page is nobody's business here. What a row remembers is what its length says: tokens that turn out not to count are
written over by those that do. Pages are copied, shared and read by others without a change to a bit.
Paper: "Efficient memory management for LLM serving with PagedAttention" (2023).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.nn.large_pages import empty
from seqloom.nn.state_formats import KVFormat
from seqloom.ops.attention import PLAIN, Shaping
from seqloom.ops.paged_attention import Pages, paged_append, paged_attention

_LEAST_TOKENS, _BLOCK = 16, 256  # of a page, for whole vectors, and those of attention's blocks, which are whole pages


class PageTables(NamedTuple):
    """Where the rows of one call lie; on the device of the pages.

    Attributes:
        pages: of each row in order, with those for the tokens of this call; more columns mean nothing. On the CPU,
            contiguous.
        lengths: tokens each row had before this call.
    """

    pages: Int32[Tensor, "B P"]
    lengths: Int64[Tensor, "B"]


class PagedRows(NamedTuple):
    """The rows of one call, as `Attention` sees them: new tokens are put behind what is there, then all are read."""

    stored: Pages
    tables: PageTables

    def append(self, k: Float[Tensor, "B G T K"], v: Float[Tensor, "B G T K"]) -> None:
        """Remember keys and values of the tokens of this call."""
        paged_append(k, v, self.stored, *self.tables)

    def append_and_attend(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G T K"],
        v: Float[Tensor, "B G T K"],
        shaping: Shaping = PLAIN,
    ) -> Float[Tensor, "B H T K"]:
        """Attend from the tokens of this call to themselves and all earlier ones."""
        self.append(k, v)
        return paged_attention(q, self.stored, *self.tables, shaping)


class PagedKV:
    """The pages of one layer; a `LayerStore` that keeps nothing by row."""

    def __init__(
        self,
        pages: int,
        page_tokens: int,
        kv_heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
        format: KVFormat = "model",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        """
        Args:
            pages: that rows hold; one more, the last, is for rows that nobody reads.
            dtype: of the activations.
            k_scale, v_scale: of keys and values in FP8.
        Raises:
            ConfigError: attention cannot read pages of so many tokens.
        """
        if page_tokens < _LEAST_TOKENS or _BLOCK % page_tokens:
            allowed = [size for size in range(_LEAST_TOKENS, _BLOCK + 1) if _BLOCK % size == 0]
            raise ConfigError(f"page_tokens: {page_tokens} is not allowed; {', '.join(map(str, allowed))} are")
        stored, scales = dtype, (1.0, 1.0)
        if format == "fp8":
            stored, scales = torch.uint8, (k_scale, v_scale)
        # Memory that no row has used yet costs nothing, and what is in it is never read.
        keys = empty(pages + 1, kv_heads, head_width, page_tokens, dtype=stored, device=device)
        values = empty(pages + 1, kv_heads, page_tokens, head_width, dtype=stored, device=device)
        self._pages = Pages(keys, values, *scales)

    def rows(self, first: int, count: int, tables: PageTables) -> PagedRows:
        """The rows of calls, guessed or not; `tables` are theirs alone, with the lengths before each call."""
        assert len(tables.pages) == len(tables.lengths) == count
        return PagedRows(self._pages, tables)

    def copy_page(self, source: int, target: int) -> None:
        """Make one page the same as another."""
        for part in (self._pages.keys, self._pages.values):
            part[target] = part[source]

    # Rows are in the tables; nothing of them is here.

    def clear(self, row: int) -> None: ...

    def move(self, source: int, target: int) -> None: ...

    def save(self, row: int) -> None: ...

    def load(self, row: int, saved: Any) -> None: ...

    def keep(self, first: int, accepted: list[int]) -> None: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, whether used or not."""
        return self._pages.keys.nbytes + self._pages.values.nbytes
