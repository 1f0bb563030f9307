"""Short chats are rendered without a thread: the loop itself talks to a process that renders.

To hand a chat to a thread and back takes longer than all that is done for it, and so does a turn of the loop between
question and reply: these mostly lie a tenth of a millisecond apart, so the loop stands still for a moment before it
turns to others. What is ordinary goes this way: a chat without tools, and a reply that is a text. For all else, errors
included, there is `ServedModel.render` in a thread, so that one place words what is wrong. The process is limited like
any that renders (see `data.template_worker`); a template that made it end once goes the slow way ever after, so none
can keep the server starting processes.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data import template_worker
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.messages import Copier, copy_messages
from seqloom.data.template_syntax import END, START, read_template
from seqloom.data.template_worker import HEADER, frame

COMMAND = (sys.executable, "-P", template_worker.__file__)
_KEY = "chat"
_MOMENT = 1
"""Milliseconds that the loop stands still for a reply."""
_SECONDS = 10.0
"""To wait for a reply, however busy the machine is."""
_PIPE = 1 << 16
"""Bytes that a pipe takes at once, whether the other side reads or not."""

Message = dict[str, Any]


class QuickRenderer:
    """
    Args:
        template: that chats without tools are rendered with.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._source = read_template(template.source).source
        self._options = frozenset(template.options)
        self._always = {"tools": None, "documents": None, START: "", END: "", **template.names}
        self._turn = asyncio.Lock()
        self._process: _Process | None = None
        self._given_up = not hasattr(select, "poll")  # not a Unix

    async def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str | None:
        """The text of a chat up to the beginning of an answer; None if it is nothing ordinary."""
        if not self._options.issuperset(options):
            return None
        copier = Copier()
        try:
            variables = {name: copier.copy(value, name) for name, value in options.items()}
            variables["messages"] = copy_messages(messages, copier)
        except DataError:
            return None
        if copier.odd_numbers:  # are written differently here and there
            return None
        variables = {**self._always, "add_generation_prompt": True, **variables}
        asked = frame({"key": _KEY, "variables": variables, "now": datetime.now().isoformat()})
        if len(asked) > _PIPE:
            return None
        async with self._turn:
            reply = await self._ask(asked)
        return reply.get("text")

    async def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    async def _ask(self, asked: bytes) -> Message:
        if self._given_up:
            return {}
        try:
            if self._process is None:
                self._process = _Process()
                await self._process.reply()
                await self._process.exchange(frame({"key": _KEY, "source": self._source}))
            return await self._process.exchange(asked)
        except (OSError, EOFError):  # TimeoutError is one
            self._given_up = True
            await self.end()
            return {}
        except asyncio.CancelledError:  # the answer to come would be taken for that to the next request
            await self.end()
            raise


class _Process:
    """One that renders. Ctrl-C is not meant for it."""

    def __init__(self) -> None:
        self._inner = subprocess.Popen(
            COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._inner.stdin is not None
        assert self._inner.stdout is not None
        self._to, self._from = self._inner.stdin.fileno(), self._inner.stdout.fileno()
        os.set_blocking(self._to, False)
        self._ready = select.poll()
        self._ready.register(self._from, select.POLLIN)

    async def exchange(self, asked: bytes) -> Message:
        """Ask and wait for the reply.

        Raises:
            OSError, EOFError: there is none.
        """
        if os.write(self._to, asked) < len(asked):
            raise BlockingIOError
        return await self.reply()

    async def reply(self) -> Message:
        """What it says next."""
        held, moment = bytearray(), _MOMENT
        while len(held) < HEADER.size or len(held) < HEADER.size + HEADER.unpack_from(held)[0]:
            if not self._ready.poll(moment):
                await self._readable()
            moment = 0
            if not (part := os.read(self._from, _PIPE)):
                raise EOFError
            held += part
        found: Message = json.loads(held[HEADER.size :].decode("ascii"))
        return found

    def end(self) -> None:
        with self._inner as process:
            process.kill()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._from, ready.set)
        try:
            async with asyncio.timeout(_SECONDS):
                await ready.wait()
        finally:
            loop.remove_reader(self._from)
