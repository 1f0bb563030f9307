"""What the engine says of answers under way, and where those wait who send them on."""

import asyncio
from collections.abc import Callable
from typing import NotRequired, TypedDict

Likely = list[tuple[float | None, list[tuple[int, float]]]]
"""For each of some tokens its log-probability, if it has one, and the most likely tokens with theirs."""


class Update(TypedDict):
    """What is new of an answer; what is not there has nothing new."""

    id: int
    pieces: list[tuple[str, str]]
    """(channel, text)"""
    tokens: list[int]
    logprobs: NotRequired[Likely]
    prompt_logprobs: NotRequired[Likely]
    finish: NotRequired[str]
    """stop, length, eos, cancelled, refused, or error; with the last update only."""
    error: NotRequired[str]
    usage: NotRequired[dict[str, int]]
    """With the last update, and with every other if the request says `progress`."""


class Answers:
    """The answers to one request of HTTP while they come: one, or several choices.

    Args:
        cancel: gives up one of the engine's requests.
    """

    def __init__(self, cancel: Callable[[int], None]) -> None:
        self._cancel = cancel
        self._updates: list[tuple[int, Update]] = []
        self._waiting: asyncio.Future[None] | None = None
        self._left = False
        self.running: set[int] = set()
        """Identities of those that are not finished."""

    async def take(self) -> list[tuple[int, Update]]:
        """All that came since the last time, each with the number of its choice; waits for something.

        Nothing at all means that nobody wants it any more.
        """
        if not self._updates and not self._left:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        found, self._updates = self._updates, []
        return [] if self._left else found

    def put(self, choice: int, update: Update) -> None:
        """Called for the engine."""
        self._updates.append((choice, update))
        self._wake()

    def leave(self) -> None:
        """Called when the client is gone."""
        self._left = True
        self._wake()

    def close(self) -> None:
        """Nobody waits for them any more."""
        for identity in list(self.running):
            self._cancel(identity)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
