"""What each token of a vocabulary is made of: the bytes it stands for, and which tokens would complete a tag."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from seqloom.data.token_pieces import token_pieces
from seqloom.serve.text import overlap

if TYPE_CHECKING:  # what brings torch, which a server's front process does without
    from seqloom.serve.contract import Tokenizer


class Vocabulary:
    """The tokens of a model.

    Args:
        size: how many logits the model has; ids beyond the tokenizer's stand for nothing.
    """

    def __init__(self, tokenizer: "Tokenizer", size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._spelled: dict[str, list[tuple[int, str]]] = {}
        self._completing: dict[tuple[str, str, bool], Int64[np.ndarray, "K"]] = {}

    @cached_property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every token; None for special tokens, ids that are no token, and what cannot be known."""
        if (definition := getattr(self.tokenizer, "definition", None)) is not None:
            found = token_pieces(definition)
        else:
            texts = {index: self.tokenizer.decode([index]) for index in range(self.tokenizer.size)}
            found = {index: text.encode() for index, text in texts.items() if text and "\ufffd" not in text}
        return [found.get(index) for index in range(self.size)]

    def completing(self, tag: str, tail: str, *, beyond: bool = False) -> Int64[np.ndarray, "K"]:
        """The tokens after which a text that ends in `tail` holds a tag that it did not hold before.

        Args:
            beyond: only those that go on after the tag.
        """
        if tag not in self._spelled:
            last = tag[-1].encode()
            self._spelled[tag] = [
                (index, piece.decode(errors="replace"))
                for index, piece in enumerate(self.pieces)
                if piece is not None and last in piece
            ]
        tail = tail[len(tail) - overlap(tail, tag) :]
        key = (tag, tail, beyond)
        if key not in self._completing:
            found = [
                index
                for index, text in self._spelled[tag]
                if (at := (tail + text).find(tag)) >= 0 and (not beyond or at + len(tag) < len(tail + text))
            ]
            self._completing[key] = np.array(found, dtype=np.int64)
        return self._completing[key]
