"""Short chats are rendered without a thread: the loop itself talks to a process that renders.

To hand a chat to a thread and back takes longer than all that is done for it. What is ordinary goes this way: a chat
without tools, and a reply that is a text. For all else, errors included, there is `ServedModel.render` in a thread, so
that one place words what is wrong. The process is limited like any that renders (see `data.template_worker`); a
template that made it end once goes the slow way ever after, so none can keep the server starting processes.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data import template_worker
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.messages import Copier, copy_messages
from seqloom.data.template_syntax import END, START, read_template
from seqloom.serve.http.engine_pipe import EnginePipe

COMMAND = (sys.executable, "-P", template_worker.__file__)
_KEY = "chat"
_SECONDS = 10.0
"""To wait for a reply, however busy the machine is."""

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
        self._pipe: EnginePipe | None = None
        self._reply: asyncio.Future[Message] | None = None
        self._given_up = False

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
        async with self._turn:
            reply = await self._ask({"key": _KEY, "variables": variables, "now": datetime.now().isoformat()})
        return reply.get("text")

    async def end(self) -> None:
        """End the process, if there is one."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.kill()
            await pipe.end()

    async def _ask(self, request: Message) -> Message:
        if self._given_up:
            return {}
        try:
            async with asyncio.timeout(_SECONDS):
                if self._pipe is None:
                    self._pipe = await EnginePipe.open(COMMAND, self._received)
                    self._pipe.lost.add_done_callback(lambda _: self._received({}))
                    await self._pipe.first
                    await self._exchange({"key": _KEY, "source": self._source})
                reply = await self._exchange(request)
        except TimeoutError:
            reply = {}
        except asyncio.CancelledError:  # the answer to come would be taken for that to the next request
            await self.end()
            raise
        if not reply:
            self._given_up = True
            await self.end()
        return reply

    async def _exchange(self, message: Message) -> Message:
        assert self._pipe is not None
        if self._pipe.lost.done():
            return {}
        self._reply = asyncio.get_running_loop().create_future()
        self._pipe.send(message)
        return await self._reply

    def _received(self, message: Message) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(message)
