"""The engine's own process: requests come in by a pipe, pieces of answers go out by another.

Whatever ends this process, the server in front lives on and starts another one. Messages are frames of JSON (see
`data.template_worker`):

    to it      {"open": folder, "engine": {...}, "threads": n}     first, once
               {"do": "submit", "id", "prompt": [ids], "sampling": {...}, "draft": n | "auto", "marks": {...} | null,
                "progress": bool}
               {"do": "cancel", "id"}
               {"do": "stop"}
    from it    {"ready": {"capacity", ...}} or {"failed": message}  once
               {"updates": [{"id", "pieces": [[channel, text]], "tokens": [ids]}]}    one a turn; where there are such,
                             "logprobs": [[p, [[id, p]]]], "prompt_logprobs": ..., and in the end "finish": reason,
                             "error": text, "usage": {...}, with `progress` always
               {"statistics": {...}}                                 twice a second, as far as turns are not longer

A grammar is compiled in a thread before its request is submitted, so that a heavy one keeps no other waiting.
Standard output belongs to the frames: whatever else is printed goes to standard error. A broken pipe ends the process.
The modules are loaded before the first message is waited for, so that a process may stand ready to follow another.
"""

import dataclasses
import gc
import os
import queue
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Protocol

from seqloom.core.errors import ConfigError, SeqloomError
from seqloom.data.template_worker import HEADER, receive, send
from seqloom.serve.config import Grammar, Sampling
from seqloom.serve.update import update

STATISTICS_SECONDS = 0.5
_COMPILERS = 2

Message = dict[str, Any]


class Served(Protocol):
    """What the process asks of an engine."""

    @property
    def capacity(self) -> int:
        """Most tokens of a prompt and its answer together."""
        ...

    @property
    def statistics(self) -> Any: ...

    def submit(self, prompt: list[int], sampling: Sampling, draft_tokens: Any = 0, marks: Any = None) -> Any: ...

    def step(self) -> list[Any]: ...

    def cancel(self, request: Any) -> None: ...

    def compile(self, grammar: Grammar) -> None:
        """Have a grammar ready for a request that is submitted next; called in other threads.

        Raises:
            SeqloomError: it cannot be used.
        """
        ...


class Worker:
    """Carries requests to an engine and its answers back until the pipe ends."""

    def __init__(self, engine: Served, source: IO[bytes], sink: IO[bytes]) -> None:
        self._engine, self._source, self._sink = engine, source, sink
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(_COMPILERS, "grammar")
        self._compiling: set[int] = set()
        self._requests: dict[int, Any] = {}
        self._ids: dict[Any, int] = {}
        self._progress: set[int] = set()

    def run(self) -> None:
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        due = 0.0
        while True:
            if (now := time.monotonic()) >= due:
                send(self._sink, {"statistics": dataclasses.asdict(self._engine.statistics)})
                due = now + STATISTICS_SECONDS
            if not self._take(due - now):
                return
            if self._requests:
                self._turn()

    def _listen(self) -> None:
        """Read on while the engine computes."""
        message: Message | None = {}
        while message is not None:
            message = receive(self._source)
            self._inbox.put(message)

    def _take(self, patience: float) -> bool:
        """Do what was asked for; waits for it only while there is nothing to compute. False: it is over."""
        try:
            if self._requests and self._inbox.empty():  # asked once a turn
                return True
            message = self._inbox.get(timeout=patience)
            while True:
                if message is None or message["do"] == "stop":
                    return False
                self._do(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _do(self, message: Message) -> None:
        identity = message["id"]
        if message["do"] == "cancel":
            self._compiling.discard(identity)
            if (request := self._requests.get(identity)) is not None:
                self._forget(identity)
                self._engine.cancel(request)
        elif message["do"] == "submit" and message["sampling"].get("grammar") is not None:
            self._compiling.add(identity)
            self._threads.submit(self._compile_for, message)
        elif message["do"] == "submit" or identity in self._compiling:
            self._compiling.discard(identity)
            self._submit(message)

    def _compile_for(self, message: Message) -> None:
        """In a thread: have the request of a message come again when its grammar is ready, or to be refused."""
        try:
            self._engine.compile(Grammar(**message["sampling"]["grammar"]))
            self._inbox.put({**message, "do": "compiled"})
        except SeqloomError as error:
            self._inbox.put({**message, "do": "compiled", "error": str(error)})
        except BaseException as error:  # a panic of compiled code is no Exception, and nobody looks after this thread
            traceback.print_exc()
            self._inbox.put({**message, "do": "compiled", "error": f"grammar: its compiler failed: {error!r}"})

    def _submit(self, message: Message) -> None:
        identity = message["id"]
        try:
            if "error" in message:
                raise ConfigError(message["error"])
            sampling, marks = read_sampling(message["sampling"]), read_marks(message["marks"])
            request = self._engine.submit(message["prompt"], sampling, message["draft"], marks)
        except SeqloomError as error:
            refused = {"pieces": [], "tokens": [], "finish": "refused", "error": str(error)}
            send(self._sink, {"updates": [{"id": identity, **refused}]})
            return
        self._requests[identity], self._ids[request] = request, identity
        if message.get("progress"):
            self._progress.add(identity)

    def _turn(self) -> None:
        updates = []
        for request in self._engine.step():
            identity = self._ids.get(request)
            if identity is None:
                continue
            updates.append(update(identity, request, progress=identity in self._progress))
            if request.finish_reason is not None:
                self._forget(identity)
        if updates:
            data = f'{{"updates":[{",".join(updates)}]}}'.encode("ascii")
            self._sink.write(HEADER.pack(len(data)) + data)
            self._sink.flush()

    def _forget(self, identity: int) -> None:
        del self._ids[self._requests.pop(identity)]
        self._progress.discard(identity)


def read_sampling(given: Message) -> Sampling:
    """Settings of a request as they came through the pipe; JSON knows neither tuples nor classes."""
    grammar = given.get("grammar")
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    if "logit_bias" in tuples:
        tuples["logit_bias"] = tuple((token, bias) for token, bias in tuples["logit_bias"])
    return Sampling(**{**given, **tuples, "grammar": grammar and Grammar(**grammar)})


def read_marks(given: Message | None) -> Any:
    from seqloom.serve.channels import ChannelMarks

    return None if given is None else ChannelMarks(**given)


def main() -> None:
    """Open the engine that the first message names, and serve."""
    source, sink = take_pipes()
    gc.disable()  # nothing of what modules make is garbage, and looking for it takes a seventh of the time
    import torch

    from seqloom.serve.engine import Engine

    gc.enable()
    gc.freeze()
    opening = receive(source)
    if opening is None:
        return
    if opening["threads"] is not None:
        torch.set_num_threads(opening["threads"])
    try:
        engine = Engine(opening["open"], **opening["engine"])
        engine.generate([[0]], Sampling(max_tokens=2, temperature=0))  # the first token brings the kernels into memory
    except SeqloomError as error:
        send(sink, {"failed": str(error)})
        return
    serve(engine, source, sink)


def take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes of the frames; what a library prints can no longer come between them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's business, and so is SIGTERM to its group
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return source, sink


def serve(engine: Served, source: IO[bytes], sink: IO[bytes]) -> None:
    """Say that the engine is ready, work until the other side is gone, and end the process."""
    code = 0
    try:
        send(sink, {"ready": {"capacity": engine.capacity, "pid": os.getpid()}})
        Worker(engine, source, sink).run()
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # a thread may still read, and nothing is left to write


if __name__ == "__main__":
    main()
