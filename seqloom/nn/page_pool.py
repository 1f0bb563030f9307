"""Which row holds which pages: lent as rows grow, shared by a count of references, and given back.

One table of pages serves the layers of all kinds. Entries beyond what a row holds name the spare page, which belongs to
nobody: what is written there is never read, so a call may have more rows than there are texts.
Paper: "Efficient memory management for LLM serving with PagedAttention" (2023).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int32
from torch import Tensor


class PagePool:
    """
    Args:
        pages: that can be lent; their numbers are 0 to pages - 1, and the spare page comes after them.
        device: of the tables.
    """

    def __init__(self, rows: int, pages: int, device: torch.device) -> None:
        self.spare = pages
        self.tables: Int32[Tensor, "R P"] = torch.full((rows, pages), pages, dtype=torch.int32, device=device)
        self.held: list[list[int]] = [[] for _ in range(rows)]
        """Pages of each row, in order."""
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that neither rows nor marks hold."""
        return len(self._free)

    @property
    def in_rows(self) -> int:
        """Pages that some row holds."""
        return len({page for held in self.held for page in held})

    def lend(self, row: int, count: int) -> bool:
        """Give a row so many pages more; False gives none, since too few are free."""
        if count > len(self._free):
            return False
        if count > 0:
            pages = [self._free.pop() for _ in range(count)]
            self._hold(row, pages)
        return True

    def share(self, row: int, pages: Sequence[int]) -> None:
        """Have a row hold pages that others hold too."""
        self._hold(row, pages)

    def keep(self, pages: Sequence[int]) -> None:
        """Hold on to pages for somebody who is no row, until they are dropped."""
        for page in pages:
            self._references[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """Let go of pages; those that nobody holds are free."""
        for page in pages:
            self._references[page] -= 1
            assert self._references[page] >= 0
            if not self._references[page]:
                self._free.append(page)

    def release(self, row: int) -> None:
        """Take all pages from a row."""
        if held := self.held[row]:
            self.drop(held)
            self.tables[row, : len(held)] = self.spare
            self.held[row] = []

    def move(self, source: int, target: int) -> None:
        """Give the pages of a row to another, which has none."""
        assert not self.held[target]
        self.held[target], self.held[source] = self.held[source], []
        self.tables[target] = self.tables[source]
        self.tables[source] = self.spare

    def _hold(self, row: int, pages: Sequence[int]) -> None:
        self.keep(pages)
        held = self.held[row]
        if len(pages) == 1:
            self.tables[row, len(held)] = pages[0]
        else:
            self.tables[row, len(held) : len(held) + len(pages)] = torch.tensor(
                pages, dtype=torch.int32, device=self.tables.device
            )
        held += pages
