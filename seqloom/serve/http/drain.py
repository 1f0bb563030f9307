"""A uvicorn server that ends in two steps: a first signal lets finish what is under way, a second ends at once.

It runs on uvloop and httptools, which take half of the processor time of what Python brings, where they are installed.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from seqloom.serve.http.engine_process import EngineProcess
from seqloom.serve.http.guard import patient

_TICK = 0.05


class DrainingServer(uvicorn.Server):
    """
    Args:
        idle_seconds: connections that send no request or take no answer for so long are closed.
        drain_seconds: what is under way at the first signal may take so long.
    """

    def __init__(self, app: Any, engine: EngineProcess, *, idle_seconds: float, drain_seconds: float) -> None:
        options = uvicorn.Config(
            app, log_level="error", ws="none", server_header=False, proxy_headers=False, access_log=False,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        options.load()
        options.http_protocol_class = patient(options.http_protocol_class, idle_seconds)
        super().__init__(options)
        self._engine, self._drain_seconds = engine, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_until_signalled(self, listening: Any, started: Callable[[], None]) -> None:
        """Start the engine, say so, and answer what comes by a listening socket.

        Raises:
            ConfigError: the engine cannot be started.
        """
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._run(listening, started))

    async def _run(self, listening: Any, started: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        await self._engine.start()
        started()
        await self.serve([listening])

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by uvicorn for SIGTERM and SIGINT, between two steps of any code."""
        assert self._loop is not None
        if self._engine.state == "draining":
            os._exit(1)  # the engine's process ends when its pipe does
        self._engine.drain()
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop)

    async def _drain(self) -> None:
        until = time.monotonic() + self._drain_seconds
        while self._engine.taken and time.monotonic() < until:
            await asyncio.sleep(_TICK)
        self._engine.give_up("the server ends")
        self.should_exit = True
