"""The chat page: static files beside this module, sent as they are.

They hold no data and no secrets, so the server gives them to anyone who may reach it; everything the page shows comes
through the API, with the key where one is wanted. The policy allows nothing from elsewhere and no script in the text.
"""

from collections.abc import Mapping
from pathlib import Path

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""What goes with each of the files."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_files() -> dict[str, tuple[str, bytes]]:
    """Path -> (media type, content) of every file of the page; the page itself is at `/`."""
    return {
        "/" if path.name == "index.html" else f"/page/{path.name}": (
            f"{_TYPES[path.suffix]}; charset=utf-8",
            path.read_bytes(),
        )
        for path in sorted(Path(__file__).with_name("page").iterdir())
        if path.suffix in _TYPES
    }
