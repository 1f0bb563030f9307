"""Our side of the process that renders chat templates: started when first needed, started anew when it was lost.

One process serves all templates of this one. A forked child gets its own.
"""

import atexit
import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any

from seqloom.core.errors import ConfigError, DataError
from seqloom.core.extras import require
from seqloom.data import template_worker
from seqloom.data.template_worker import MEMORY, SECONDS, receive, send

_PATIENCE = 60.0
"""Seconds to wait for an answer, however busy the machine is."""

_lock = threading.Lock()
_running: subprocess.Popen[bytes] | None = None


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and wait for the answer.

    Raises:
        DataError: the template took more memory or time than it may, and its process with it.
        ConfigError: the process cannot be started.
    """
    with _lock:
        try:
            process = _running or _start()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                send(process.stdin, request)
            reply = _receive(process)
        except BaseException:  # Ctrl-C too: the answer to come would be taken for that to the next request
            _stop()
            raise
        if reply is None:
            raise DataError(f"it {_stop()}")
        return reply


def _start() -> subprocess.Popen[bytes]:
    global _running
    require(None, "minijinja")
    process = subprocess.Popen(
        [sys.executable, "-P", template_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is not meant for it
    )
    _running = process
    if _receive(process) is None:
        _stop()
        raise ConfigError(f"the process that renders chat templates cannot be started ({template_worker.__file__})")
    return process


def _receive(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
    return receive(process.stdout) if ready else None


def _stop() -> str:
    """End the process; returns what became of it."""
    global _running
    process, _running = _running, None
    if process is None:
        return "was not running"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)  # it may be about to end by itself, and its code tells why
    process.kill()
    with contextlib.suppress(BrokenPipeError):
        process.communicate()
    if process.returncode == -signal.SIGPROF:
        return f"takes more than {SECONDS:g} s"
    return f"takes more than {MEMORY >> 20} MiB of memory or breaks the engine that renders it"


def _forget() -> None:
    """In a forked child: the process belongs to the parent, and so does whatever was going on."""
    global _running, _lock
    if _running is not None:
        for stream in (_running.stdin, _running.stdout):
            assert isinstance(stream, io.BufferedReader | io.BufferedWriter)
            stream.raw.close()  # without a flush: what another thread was writing is not ours to send
        _running.returncode = 0  # not ours to wait for
    _running, _lock = None, threading.Lock()


def _close() -> None:
    with _lock:
        if _running is not None:
            _running.communicate()  # closes its input, and it ends


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
