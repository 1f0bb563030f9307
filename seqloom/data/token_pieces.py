"""The bytes that each token of a tokenizer.json stands for.

Vocabularies spell bytes in one of two ways: in the alphabet of byte-level BPE, where every character is a byte, or as
text with ▁ for a space and <0xNN> for the bytes that are no text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")


def is_byte_level(fields: Mapping[str, Any]) -> bool:
    """Whether those of a tokenizer.json say that every character of a token is a byte."""
    return '"ByteLevel"' in json.dumps(fields.get("decoder"))


def token_pieces(definition: str) -> dict[int, bytes]:
    """The bytes of all tokens but the special ones, which stand for none."""
    fields = json.loads(definition)
    added = {token["id"]: token for token in fields.get("added_tokens") or ()}
    byte_level, alphabet = is_byte_level(fields), _byte_of_character()
    pieces: dict[int, bytes] = {}
    for token, index in Tokenizer.from_str(definition).get_vocab().items():
        if index in added:
            if not added[index]["special"]:
                pieces[index] = token.encode()
        elif byte_level and alphabet.keys() >= set(token):
            pieces[index] = bytes(alphabet[character] for character in token)
        elif not byte_level and (byte := _BYTE.fullmatch(token)):
            pieces[index] = bytes.fromhex(byte[1])
        else:
            pieces[index] = token.replace("▁", " ").encode()
    return pieces


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: printable Latin-1 stands for itself, the other bytes come after it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
