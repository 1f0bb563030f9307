"""A tokenizer whose tokens are any bytes that a test wants, and tags that may be tokens of their own."""

from collections.abc import Sequence


class ByteTokens:
    """Ids 0 to 255 are single bytes; then come the end of the text and the tags, which decode to nothing, as special
    tokens do; what tests add follows."""

    bos, eos = None, 256

    def __init__(self, *tags: str) -> None:
        self.tags = {tag: 257 + number for number, tag in enumerate(tags)}
        self.pieces: list[bytes] = [bytes([byte]) for byte in range(256)] + [b""] * (1 + len(tags))

    @property
    def size(self) -> int:
        return len(self.pieces)

    def token(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        for tag, index in self.tags.items() if specials else ():
            if tag in text:
                before, _, after = text.partition(tag)
                return [*self.encode(before, specials=True), index, *self.encode(after, specials=True)]
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        known = [self.pieces[index] for index in ids if index < self.size]  # unknown ids have no text, as in tokenizers
        return b"".join(known).decode("utf-8", errors="replace")
