"""The engine: prompts in, text out.

    submit   a prompt and how to answer it; gives a `Request`, which waits
    step     one turn of the scheduler; gives the requests that got something new
    cancel   end a request now

`generate` and `stream` are these three in a row. Requests of any kind and at any place run side by side over one memory
(`scheduler`), and an answer is the same text with the same log-probabilities whatever runs beside it, wherever its
prompt was cut, found or computed again, and however far was guessed ahead.
Paper: Nemotron-H, inference; post-training notes on serving hybrids.
"""

from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path

from seqloom.core.errors import DataError
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.channels import ChannelMarks
from seqloom.serve.choosing import Chooser
from seqloom.serve.config import Grammar, Sampling, Weights
from seqloom.serve.constraints import Grammars
from seqloom.serve.contract import LanguageModel, Tokenizer
from seqloom.serve.drafting import MOST_GUESSES
from seqloom.serve.opening import DrafterName, open_drafter, open_source, versions, whole
from seqloom.serve.prefix import PrefixCache
from seqloom.serve.prompts import DraftTokens, Prompt, checked_draft_tokens, paired, token_ids
from seqloom.serve.request import Completion, Request
from seqloom.serve.scheduler import Scheduler
from seqloom.serve.statistics import EngineStatistics
from seqloom.serve.vocabulary import Vocabulary

PREFILL_TOKENS = 512
"""Prompt tokens read in one turn; bounds the memory of activations and how long others wait."""

_ROW_TOKENS = 2048
"""Of every row that may run, so many tokens are remembered if nobody says how many."""


class Engine:
    """Generates text with a language model.

    Args:
        source: a run folder or public model folder, or a model and its tokenizer.
        max_rows: most prompts that are generated at the same time; further ones wait.
        kv_cache, ssm_state: formats that keys and values and Mamba states are stored in; None as the model has it.
        cache_tokens: most tokens remembered at a time, of all prompts and answers together; 2,048 a row if not given.
        page_tokens: that are remembered, shared and given back together.
        prefix_cache: keep what was computed of prompts and answers for others that begin like them; a number is the
            most bytes of copied Mamba states, True allows twice as many as the rows have themselves.
        prefill_tokens: of prompts, read between two tokens of the answers that run.
        deterministic: compute every token by the same operations whatever stands beside it; None does so on a CPU.
        weights: format that the matrices are kept and read in.
        drafter: what guesses ahead, the model's prediction block or what the text said before; auto takes the block
            if there is one.
    Raises:
        ConfigError: a setting is not allowed, or this model cannot honour it.
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
        cache_tokens: int | None = None,
        page_tokens: int = 64,
        prefix_cache: bool | int = True,
        prefill_tokens: int = PREFILL_TOKENS,
        deterministic: bool | None = None,
        weights: Weights = "as_stored",
        drafter: DrafterName = "auto",
    ) -> None:
        whole(
            max_rows=max_rows,
            cache_tokens=1 if cache_tokens is None else cache_tokens,
            page_tokens=page_tokens,
            prefix_cache=1 if isinstance(prefix_cache, bool) else prefix_cache,
            prefill_tokens=prefill_tokens,
        )
        self.max_rows = max_rows
        self.model, self.tokenizer = open_source(source, kv_cache, ssm_state, weights)
        pages = -(-(cache_tokens or max_rows * _ROW_TOKENS) // page_tokens)
        cache = self.model.new_cache(max_rows + 1, pages, page_tokens, MOST_GUESSES)
        self.capacity = pages * page_tokens
        """Most tokens of a prompt and its answer together."""
        prefixes = None
        if prefix_cache is not False:
            prefixes = PrefixCache(cache, max_rows, None if prefix_cache is True else prefix_cache)
        if deterministic is None:
            deterministic = next(self.model.parameters()).device.type == "cpu"
        guesses = open_drafter(drafter, self.model, cache)
        self._scheduler = Scheduler(self.model, cache, max_rows, prefixes, guesses, prefill_tokens, deterministic)
        self._submitted = self._tokens_in = 0
        self._weights_seen = versions(self.model)

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        draft_tokens: DraftTokens = 0,
        marks: ChannelMarks | None = None,
    ) -> Request:
        """Have a prompt answered in the turns to come.

        Args:
            draft_tokens: changes speed, never the answer.
            marks: how the model marks thinking and tool calls; None takes all text for content.
        Raises:
            ConfigError, DataError: a setting or prompt that cannot be used.
        """
        request = self._request(prompt, sampling or Sampling(), draft_tokens, marks, "prompt")
        self._enqueue(request)
        return request

    def step(self) -> list[Request]:
        """One turn: some of a prompt is read, and all rows that run get a token or several.

        Returns:
            the requests that got something new, which their `fresh` holds until the next turn.
        """
        return self._scheduler.turn()

    def cancel(self, request: Request) -> None:
        """End a request, if it has not ended; its row and pages are free at once."""
        if request.finish_reason is None:
            self._scheduler.drop(request)
            request.finish("cancelled")

    def compile(self, grammar: Grammar) -> None:
        """Have a grammar ready for the request that brings it; may run in another thread.

        Raises:
            ConfigError: the grammar cannot be used.
        """
        self._grammars.matcher(grammar, [])

    @property
    def statistics(self) -> EngineStatistics:
        scheduler = self._scheduler
        cache, prefixes = scheduler.cache, scheduler.prefixes
        in_rows = cache.pages_in_rows
        return EngineStatistics(
            rows_running=len(scheduler.running),
            rows_waiting=len(scheduler.waiting) + (scheduler.reading is not None),
            pages=cache.pages,
            pages_free=cache.pages - in_rows,
            pages_remembered=cache.pages - in_rows - cache.free_pages,
            prefix_reuse="off" if prefixes is None else prefixes.reuse,
            prefix_query_tokens=0 if prefixes is None else prefixes.query_tokens,
            prefix_hit_tokens=0 if prefixes is None else prefixes.hit_tokens,
            preemptions=scheduler.preemptions,
            drafted=list(scheduler.guessing.drafted),
            accepted=list(scheduler.guessing.accepted),
            graphs=scheduler.decode.state,
            tokens_in=self._tokens_in,
            tokens_out=scheduler.guessing.tokens_out,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        draft_tokens: DraftTokens = 0,
    ) -> list[Completion]:
        """Continue all prompts; the answers come in the order of the prompts.

        Args:
            sampling: one setting for all prompts, or one for each.
            draft_tokens: tokens to guess ahead; changes speed, never the answers.
        Raises:
            ConfigError, DataError: a setting or prompt that cannot be used; nothing was generated.
            NumericsError: the model's logits are not finite.
        """
        requests = self._requests(prompts, sampling, draft_tokens)
        for _ in self._answered(requests):
            pass
        return [request.completion() for request in requests]

    def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, draft_tokens: DraftTokens = 0
    ) -> Generator[str, None, Completion]:
        """Continue one prompt and give the text piece by piece, each as soon as nothing can change it any more.

        Returns:
            an iterator over pieces of text; `yield from` it gives the whole `Completion` in the end.
        Raises:
            as `generate`; prompt and settings are checked at once, before the first piece is asked for.
        """
        (request,) = self._requests([prompt], sampling, draft_tokens)

        def show() -> Generator[str, None, Completion]:
            shown = 0
            for _ in self._answered([request]):
                pieces = request.pieces(shown)
                shown += len(pieces)
                if text := "".join(text for _, text in pieces):
                    yield text
            return request.completion()

        return show()

    def _answered(self, requests: list[Request]) -> Generator[None, None, None]:
        """Take turns until all requests are answered; whoever stops asking, or is stopped, gives their rows back."""
        try:
            for request in requests:
                self._enqueue(request)
            while any(request.finish_reason is None for request in requests):
                self.step()
                for request in requests:
                    if request.failure is not None:
                        raise request.failure
                yield
        finally:
            for request in requests:
                self.cancel(request)

    def _enqueue(self, request: Request) -> None:
        scheduler = self._scheduler
        if not (scheduler.running or scheduler.reading) and (seen := versions(self.model)) != self._weights_seen:
            scheduler.forget()  # they have learned, or were loaded, between two answers
            self._weights_seen = seen
        self._tokens_in += request.prompt_tokens
        scheduler.waiting.append(request)

    def _requests(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None, draft_tokens: DraftTokens
    ) -> list[Request]:
        return [
            self._request(prompt, each, draft_tokens, None, f"prompt {index}")
            for index, (prompt, each) in enumerate(paired(prompts, sampling))
        ]

    def _request(
        self, prompt: Prompt, sampling: Sampling, draft_tokens: DraftTokens, marks: ChannelMarks | None, name: str
    ) -> Request:
        draft = checked_draft_tokens(draft_tokens)
        ids = token_ids(prompt, self.tokenizer, self.model.vocab_size, name)
        if len(ids) >= self.capacity:
            raise DataError(
                f"{name}: it has {len(ids):,} tokens, and this engine remembers {self.capacity:,} of a prompt and its "
                "answer together; give it more cache_tokens"
            )
        self._submitted += 1
        chooser = Chooser(sampling, self._vocabulary, ids, marks, self._grammars if sampling.grammar else None)
        return Request(ids, sampling, chooser, self._submitted, self.capacity, draft)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.model.vocab_size)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._vocabulary)
