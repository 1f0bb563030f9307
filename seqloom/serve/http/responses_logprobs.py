"""Log-probabilities of the tokens that the words of a message are made of.

The tokens of an answer are also those of its thoughts and calls and of the tags between, and words wait until nothing
can change them any more. So the text of all tokens is walked along the pieces that the engine gives, in their order:
a piece of content has the tokens that it begins in, and what is in no piece (tags, stop strings) is passed by.
"""

import codecs
from collections import deque
from typing import Any

from seqloom.serve.http.answers import token_logprobs
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.updates import Update
from seqloom.serve.marks import marks_of

Logprob = dict[str, Any]
"""In the form of chat completions, which is that of responses too."""


class MessageLogprobs:
    """Those of one answer, as far as it has come."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        marks = marks_of(model.template.source if model.template else "", "", tools=False)
        self._tags = [tag for tag in (marks.think_open, marks.think_close) if tag]
        self._characters = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._tokens: deque[tuple[str, Logprob | None]] = deque()
        """The text of tokens that is in no piece so far; None with what is left of one that was."""
        self._content: deque[tuple[int, Logprob]] = deque()
        """Characters of the tokens of pieces of content that were not said yet."""
        self._channel: str | None = None

    def feed(self, update: Update) -> None:
        for logprob in token_logprobs(self._model, update):
            self._tokens.append((self._characters(bytes(logprob["bytes"])), logprob))
        for channel, text in update["pieces"]:
            if channel == "content" and self._channel != "content":
                self._pass_tags(text)
            self._channel = channel
            self._walk(text, content=channel == "content")

    def said(self, text: str) -> list[Logprob]:
        """Those of a text of the message, which are given once; line breaks before the first word are not said."""
        found: list[Logprob] = []
        missing = len(text)
        while self._content and missing > 0:
            characters, logprob = self._content.popleft()
            if found or text[0] == "\n" or logprob["token"].strip("\n"):
                found.append(logprob)
                missing -= characters
        return found

    def _pass_tags(self, text: str) -> None:
        """Walk past the tags of thoughts before a text of content, which may itself be the spelling of one."""
        thought = self._channel == "reasoning"
        for tag in self._tags:
            ahead = "".join(text for text, _ in self._tokens)
            if ahead.startswith(tag) and (thought or not text.startswith(tag)):
                self._walk(tag, content=False)
                thought = True

    def _walk(self, text: str, *, content: bool) -> None:
        while text and self._tokens:
            part, logprob = self._tokens.popleft()
            length = min(len(part), len(text))
            if part[:length] != text[:length]:
                continue
            if content and logprob is not None:
                self._content.append((len(part), logprob))
            text, rest = text[length:], part[length:]
            if rest:
                self._tokens.appendleft((rest, None))
