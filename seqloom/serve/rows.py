"""The requests that run: rows 0, 1, ... of the cache without holes, those that draft first."""

from seqloom.nn.cache import HybridCache
from seqloom.serve.request import Request


class Rows(list[Request]):
    """Request number r has row r of the cache; whoever comes, moves or goes takes its memory along."""

    def __init__(self, cache: HybridCache) -> None:
        super().__init__()
        self._cache = cache

    @property
    def drafting(self) -> int:
        """Requests that draft."""
        return sum(request.drafts for request in self)

    def enter(self, request: Request, seat: int) -> None:
        """Have a request run whose memory is in another row, behind those that draft or behind all."""
        place = end = len(self)
        if request.drafts and (place := self.drafting) < end:
            self._move(place, end)
        self._cache.move(seat, place)
        self[place : place + 1] = [request]

    def leave(self, request: Request) -> None:
        """Take the row from a request, and close the hole."""
        hole, drafting = self.index(request), self.drafting
        self._cache.release(hole)
        for last in (drafting - 1, len(self) - 1):
            if hole < last:
                self._move(last, hole)
                hole = last
        self.pop()

    def _move(self, source: int, target: int) -> None:
        self._cache.move(source, target)
        self[target : target + 1] = [self[source]]
