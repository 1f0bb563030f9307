"""The one way from data into a page: text without markup."""

import re
from html import escape

Html = str
"""Markup that is safe to put in a page."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def text(value: object) -> Html:
    """Anything as text, for between tags and for quoted attributes."""
    return escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True)
