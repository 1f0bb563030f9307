"""`seqloom serve`: a trained model behind a socket.

What can be served, and how, is the system's to say: `systems/<name>/server.py` has a class `ServerConfig`, which
becomes flags, and a function `serve(run, host, port, key, settings)`.
"""

import importlib.util
import ipaddress
from pathlib import Path
from typing import Annotated, Any

import tyro

from seqloom.cli.arguments import parse
from seqloom.core.errors import ConfigError

_LEAST_KEY = 16


def main(arguments: list[str]) -> None:
    named = [argument for argument in arguments[:1] if not argument.startswith("-")]
    room = _room(Path(named[0])) if named else None
    if room is None:
        parse("serve", _nothing_named, arguments)
        return
    kind = room.ServerConfig

    def serve(
        run: tyro.conf.Positional[Path],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        key_file: Path | None = None,
        settings: Annotated[kind, tyro.conf.arg(name="")] = kind(),  # type: ignore[valid-type]  # noqa: B008
    ) -> None:
        """Serve a trained model until interrupted.

        Example: seqloom serve runs/an4_streaming --port 8000

        Args:
            run: a run or model folder; comes first, since it decides what else may be set.
            host: where to listen; other machines reach the server only with a key.
            port: 0 takes a free one.
            key_file: a file with the key that clients must send (Authorization: Bearer KEY).
        """
        from seqloom.core.config import check

        key = read_key(host, key_file)
        room.serve(run, host, port, key, check(settings, "command line"))

    parse("serve", serve, arguments)


def _nothing_named(run: tyro.conf.Positional[Path]) -> None:
    """Serve a trained model: seqloom serve RUN [--host HOST] [--port PORT] [--key-file FILE].

    RUN comes first; seqloom serve RUN --help shows all that can be set for it.

    Example: seqloom serve runs/an4_streaming --port 8000

    Args:
        run: a run or model folder.
    """
    raise ConfigError(f"RUN comes first: seqloom serve {run}")


def _room(run: Path) -> Any:
    """The module that serves a folder's system."""
    from seqloom.core import rooms

    folder, _ = rooms.newest(run)
    system = rooms.owner(folder)
    able = [name for name in rooms.systems() if importlib.util.find_spec(f"seqloom.systems.{name}.server")]
    if system not in able:
        raise ConfigError(f"{run}: models of {system} are not served yet; served are those of: {', '.join(able)}")
    return rooms.part(system, "server")


def read_key(host: str, path: Path | None) -> str | None:
    """
    Raises:
        ConfigError: other machines would reach the server without a key, or the file holds none.
    """
    if path is None:
        if not _is_loopback(host):
            raise ConfigError(f"--host {host}: other machines could use the model; name a --key-file as well")
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file {path}: cannot be read: {error}") from error
    if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"--key-file {path}: must hold one key of at least {_LEAST_KEY} letters, digits and signs")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
