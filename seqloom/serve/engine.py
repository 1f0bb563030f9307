"""The engine: prompts in, text out.

Prompts are read one by one, in pieces of bounded size; their memories are then joined into one batch without padding,
and every step draws one token for every row. A finished row leaves the batch and the next prompt takes its place.

    admit    read all tokens of a prompt but the last into fresh states, and join these to the batch
    step     feed each row its newest token and draw the next from the last hidden state
    drop     keep the rows that go on

With drafting, a step feeds one row its newest token and the guesses after it and keeps the guesses that are right. If
one is wrong, the states go back to where the step began and see the right tokens again. Each row keeps another number
of guesses, so rows then run one after another.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.rooms import load
from seqloom.data.tokenizer import open_tokenizer
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Sampling
from seqloom.serve.contract import LanguageModel, States, Tokenizer, join, restore, select, snapshot, to_tensor
from seqloom.serve.drafting import MtpDrafter, verify
from seqloom.serve.request import Completion, Request

PREFILL_TOKENS = 512
"""Prompt tokens read in one pass; bounds the memory of activations."""

REPLAY_TOKENS = 8
"""So many tokens that were right before a wrong guess get a pass of their own; fewer are fed again with the next step,
which costs a small model next to nothing."""

Prompt = str | Sequence[int]
"""A text, which is put after the beginning-of-text token if there is one, or token ids as they are.
Nothing at all is the beginning of a text."""


class Engine:
    """Generates text with a language model.

    Args:
        source: a run folder or public model folder, or a model and its tokenizer.
        max_rows: most prompts that are generated at the same time; further ones wait.
        kv_cache, ssm_state: formats that keys and values and Mamba states are stored in; None as the model has it.
    Raises:
        ConfigError: a format is unknown, or the model knows but one.
        CheckpointError: the folder cannot be read.
        DataError: the tokenizer does not fit the model.
    """

    def __init__(
        self,
        source: str | Path | tuple[LanguageModel, Tokenizer],
        max_rows: int = 32,
        *,
        kv_cache: KVFormat | None = None,
        ssm_state: SsmFormat | None = None,
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows: {max_rows} is not allowed; it must be a whole number from 1")
        self.max_rows = max_rows
        self.model: LanguageModel
        self.tokenizer: Tokenizer
        if isinstance(source, tuple):
            self.model, self.tokenizer = source
        else:
            model = load(source)
            if not hasattr(model, "vocab_size"):
                raise ConfigError(f"{source}: writes no text; it is a {type(model).__name__}, and no language model")
            self.model, self.tokenizer = model.to(pick_device("auto")), open_tokenizer(source)
        if self.tokenizer.size > self.model.vocab_size:
            raise DataError(
                f"the tokenizer has {self.tokenizer.size} tokens but the model only {self.model.vocab_size}; "
                "they do not belong together"
            )
        wanted: dict[str, Any] = {"keys_values": kv_cache, "ssm": ssm_state}
        if wanted := {name: format for name, format in wanted.items() if format is not None}:
            keeper: Any = self.model
            if not hasattr(keeper, "keep_states"):
                raise ConfigError(f"kv_cache, ssm_state: a {type(keeper).__name__} stores its states in one way only")
            keeper.keep_states(replace(keeper.state_formats, **wanted))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None, draft_tokens: int = 0
    ) -> list[Completion]:
        """Continue all prompts; the answers come in the order of the prompts.

        Args:
            sampling: one setting for all prompts, or one for each.
            draft_tokens: tokens to guess ahead with the model's prediction block; changes speed, never the answers.
        Raises:
            ConfigError, DataError: a setting or prompt that cannot be used; nothing was generated.
            NumericsError: the model's logits are not finite.
        """
        requests = self._requests(prompts, sampling)
        for _ in self._run(requests, self._checked(draft_tokens)):
            pass
        return [request.completion() for request in requests]

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, draft_tokens: int = 0
    ) -> Generator[str, None, Completion]:
        """Continue one prompt and give the text piece by piece, each as soon as nothing can change it any more.

        Returns:
            an iterator over pieces of text; `yield from` it gives the whole `Completion` in the end.
        Raises:
            as `generate`; prompt and settings are checked at once, before the first piece is asked for.
        """
        (request,) = self._requests([prompt], sampling)
        steps = self._run([request], self._checked(draft_tokens))

        def show() -> Generator[str, None, Completion]:
            for step in steps:
                yield from (text for _, text in step if text)
            return request.completion()

        return show()

    @torch.inference_mode()
    def _run(self, requests: list[Request], draft_tokens: int) -> Iterator[list[tuple[Request, str]]]:
        """Finish all requests; after each step gives every row's request with the text that became certain."""
        waiting = deque(requests)
        rows: list[Request] = []
        states = self.model.new_states(0)
        max_rows = 1 if draft_tokens else self.max_rows
        while waiting or rows:
            admitted = [waiting.popleft() for _ in range(min(len(waiting), max_rows - len(rows)))]
            if admitted:
                join(states, [self._prefill(request, draft_tokens) for request in admitted])
                rows += admitted
            drawn = self._step(rows, states, draft_tokens)
            yield [(request, request.take(tokens)) for request, tokens in zip(rows, drawn, strict=True)]
            kept = [index for index, request in enumerate(rows) if request.finish_reason is None]
            if len(kept) < len(rows):
                rows = [rows[index] for index in kept]
                select(states, to_tensor(kept, self.model))

    def _prefill(self, request: Request, draft_tokens: int) -> States:
        """States that have seen the prompt but for its last token, which the first step feeds."""
        states = self.model.new_states(1)
        if draft_tokens:
            request.drafter = MtpDrafter(self.model)
        last = len(request.prompt) - 1
        for start in range(0, last, PREFILL_TOKENS):
            stop = min(start + PREFILL_TOKENS, last)
            tokens = to_tensor([request.prompt[start:stop]], self.model)
            if request.drafter is None:
                self.model.remember(tokens, states)
            else:
                hidden, _ = self.model.hidden(tokens, states=states)
                request.drafter.follow(hidden, request.prompt[start + 1 : stop + 1])
        return states

    def _step(self, rows: list[Request], states: States, draft_tokens: int) -> list[list[int]]:
        """Draw one token for every row and, with drafting, one more for every right guess."""
        guesses = [request.guess(draft_tokens) for request in rows]
        fed = [request.unseen + guess for request, guess in zip(rows, guesses, strict=True)]
        mark = snapshot(states) if guesses[0] else []
        hidden, _ = self.model.hidden(to_tensor(fed, self.model), states=states)
        hidden = hidden[:, -1 - len(guesses[0]) :]
        drawn = [
            verify(logits, guess, request.choose)
            for request, guess, logits in zip(rows, guesses, self.model.head(hidden), strict=True)
        ]
        for request, tokens in zip(rows, drawn, strict=True):
            request.unseen = tokens[-1:]
        if (drafter := rows[0].drafter) is not None:
            drafter.follow(hidden[:, : len(drawn[0])], drawn[0])
            if wrong := hidden.shape[1] - len(drawn[0]):
                restore(states, mark)
                self._replay(rows[0], fed[0][:-wrong], states)
        return drawn

    def _replay(self, request: Request, tokens: list[int], states: States) -> None:
        """Have restored states see right tokens again: with the next step while they are few, or else now."""
        if len(tokens) < REPLAY_TOKENS:
            request.unseen = tokens + request.unseen
        else:
            self.model.remember(to_tensor([tokens], self.model), states)

    def _requests(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None) -> list[Request]:
        if not isinstance(prompts, list | tuple):
            raise DataError(f"prompts: expected a list of texts or of token-id lists, got {type(prompts).__name__}")
        if sampling is None or isinstance(sampling, Sampling):
            sampling = [sampling or Sampling()] * len(prompts)
        if [type(each) for each in sampling] != [Sampling] * len(prompts):
            raise ConfigError(f"sampling: expected one Sampling, or a list with one for each of {len(prompts)} prompts")
        return [
            Request(self._ids(prompt, index), each, self.tokenizer)
            for index, (prompt, each) in enumerate(zip(prompts, sampling, strict=True))
        ]

    def _ids(self, prompt: Prompt, index: int) -> list[int]:
        beginning = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"prompt {index}: character {error.start} is half a surrogate pair, not text") from None
            prompt = [*beginning, *self.tokenizer.encode(prompt)]
        if not isinstance(prompt, list | tuple):
            raise DataError(f"prompt {index}: expected a text or a list of token ids, got {type(prompt).__name__}")
        for place, token in enumerate(prompt):
            if not isinstance(token, int) or not 0 <= token < self.model.vocab_size:
                raise DataError(
                    f"prompt {index}: {token!r} at place {place} is not a token id; "
                    f"they are whole numbers from 0 to {self.model.vocab_size - 1}"
                )
        if not (ids := list(prompt) or beginning):
            raise DataError(f"prompt {index}: it is empty, and this tokenizer has no token for the beginning of a text")
        return ids

    def _checked(self, draft_tokens: int) -> int:
        if not isinstance(draft_tokens, int) or draft_tokens < 0:
            raise ConfigError(f"draft_tokens: {draft_tokens!r} is not allowed; it must be a whole number from 0")
        if draft_tokens and self.model.mtp is None:
            raise ConfigError(
                f"draft_tokens: {draft_tokens} is not allowed; this model has no prediction block, so use 0"
            )
        return draft_tokens
