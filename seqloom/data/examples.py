"""From what a record means to token sequences, each token learned or not.

A chat is rendered by the tokenizer's own template, once for every question if the template rewrites earlier answers.
The answers are learned, with the mark that ends them, and all else is only read. No token may reach over the border
between what was given and what is learned: where the tokenizer would join them, the text is encoded in parts, as it is
when the model answers. Without a template, a pair is `<s> question answer </s>` with the answer and its `</s>` learned,
and a text is learned whole. The first token of a sequence has nothing before it and is never learned.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.conversations import Chat, Pair, RecordError, Text
from seqloom.data.tokenizer import TextTokenizer

Spans = Sequence[tuple[int, int]]


class Example(NamedTuple):
    """A sequence of tokens and which of them are learned."""

    ids: np.ndarray
    learned: np.ndarray
    n_bytes: int
    """Bytes of text that the tokens stand for."""
    cut: bool
    """Its end is missing."""


class Encoder:
    """Makes training sequences for one tokenizer."""

    def __init__(self, tokenizer: TextTokenizer, options: Mapping[str, Any], length: int) -> None:
        """Args:
        options: settings of the chat template.
        length: most tokens of a sequence.
        Raises:
            ConfigError: the chat template has no such setting.
        """
        self.tokenizer, self.length = tokenizer, length
        self._template, self._options = tokenizer.template, options
        known = self._template.options if self._template else ()
        if unknown := [name for name in options if name not in known]:
            raise ConfigError(
                f"task.data.template_options: the chat template of this tokenizer does not read '{unknown[0]}'; "
                f"it reads: {', '.join(known) or 'none'}"
            )

    def examples(self, record: Chat | Pair | Text) -> Iterator[Example | None]:
        """The sequences of a record; None for one that is cut before anything is learned.

        Raises:
            RecordError: the template refuses the record, or nothing in it is learned.
            DataError: chats cannot be rendered with this tokenizer at all.
        """
        if isinstance(record, Pair) and self._template is not None:
            record = record.chat()
        match record:
            case Chat():
                yield from (self._example(*self._encode(*rendered)) for rendered in self._rendered(record))
            case Pair():
                given = record.prompt()
                text = f"{given}{record.answer}"
                yield self._example(*self._marked(*self._encode(text, [(len(given), len(text))])))
            case Text():
                yield from self._stretches(*self._marked(*self._encode(record.text, [(0, len(record.text))])))

    def _rendered(self, chat: Chat) -> Sequence[tuple[str, Spans]]:
        if self._template is None:
            raise DataError(
                "the tokenizer has no chat template, so messages cannot be rendered; put the model family's "
                'chat_template.jinja beside its tokenizer.json, or write records as text ({"text": …}) or as '
                'strings ({"prompt": …, "completion": …}), which need none'
            )
        try:
            return self._template.render_turns(chat.messages, tools=chat.tools, options=self._options, given=chat.given)
        except DataError as error:
            raise RecordError("cannot be rendered", str(error)) from None

    def _encode(self, text: str, spans: Spans) -> tuple[list[int], np.ndarray]:
        encode = self.tokenizer.encode_with_offsets
        ids, offsets = encode(text, specials=True)
        if joined := [start for start, _ in spans if _is_joined(offsets, start)]:
            ids, offsets = [], []
            for start, end in zip([0, *joined], [*joined, len(text)], strict=True):
                more, places = encode(text[start:end], specials=True)
                ids += more
                offsets += [(start + first, start + last) for first, last in places]
        learned = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            learned[_first_from(offsets, start) : _first_from(offsets, end)] = True
        return ids, learned

    def _marked(self, ids: list[int], learned: np.ndarray) -> tuple[list[int], np.ndarray]:
        """With the marks of a document, unless the text spells them out itself."""
        bos, eos = self.tokenizer.bos, self.tokenizer.eos
        before = [] if bos is None or ids[:1] == [bos] else [bos]
        after = [] if ids[-1:] == [eos] else [eos]
        return [*before, *ids, *after], np.concatenate([[False] * len(before), learned, [True] * len(after)])

    def _example(self, ids: list[int], learned: np.ndarray) -> Example | None:
        """A sequence that is cut at its end if it is too long; None if nothing learned is left of it."""
        learned[:1] = False
        if not learned.any():
            raise RecordError("nothing to learn", "no token of an answer is left when it is rendered")
        kept = learned[: self.length]
        return self._piece(ids[: self.length], kept, len(ids) > self.length) if kept.any() else None

    def _stretches(self, ids: list[int], learned: np.ndarray) -> Iterator[Example]:
        """A text of any length: each sequence begins with the token that the one before it ended with."""
        for start in range(0, max(1, len(ids) - 1), self.length - 1):
            stop = start + self.length
            kept = learned[start:stop].copy()
            kept[0] = False
            yield self._piece(ids[start:stop], kept, False)

    def _piece(self, ids: list[int], learned: np.ndarray, cut: bool) -> Example:
        found = np.array(ids, dtype=np.int64)
        return Example(found, learned, int(self.tokenizer.token_bytes[found].sum()), cut)


def _first_from(offsets: Spans, place: int) -> int:
    """The first token whose text begins at a place or behind it."""
    return bisect_left(offsets, (place,))


def _is_joined(offsets: Spans, place: int) -> bool:
    """Whether a token holds text from both sides of a place."""
    before = _first_from(offsets, place) - 1
    return before >= 0 and offsets[before][1] > place
