"""Which work of which request comes next, over one memory.

A turn reads some of a prompt, in one piece or a few short ones, and then takes one step with all running rows, so that
no prompt, however long, keeps the others from their next token.

    wait     requests in the order they came; the first is admitted when a row and the pages of its tokens are free
    read     its prompt, but for the last token, into a row of its own, from the longest prefix that is remembered
    run      rows 0, 1, ... without holes, those that draft first: feed each its newest token and the guesses after it
    preempt  when pages run out: prefixes are forgotten, then guesses are left out, and then the youngest request gives
             its pages back and waits to be read again, the tokens drawn so far behind those of its prompt

Guesses that were wrong never happened: `cache.keep` says how many tokens of a row count. All of this changes when
something is computed and never what (`ops.kernels.invariant`), so neither does it change a text.
"""

import time
from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.nn.cache import HybridCache
from seqloom.ops.kernels import invariant
from seqloom.serve.captured import CudaGraphs, DecodeStep
from seqloom.serve.contract import LanguageModel
from seqloom.serve.drafting import Drafter
from seqloom.serve.guessing import Guessing
from seqloom.serve.prefix import PrefixCache
from seqloom.serve.request import Fresh, Request
from seqloom.serve.rows import Rows

_MOST_STEPS, _CALL_SECONDS = 8, 0.01
"""In one call of the model; several come to the reader at once."""


class Scheduler:
    """
    Args:
        cache: of one row more than may run; prompts are read into the last one.
        prefixes: None remembers none.
        drafter: of the requests that draft.
        prefill_tokens: of prompts, in one turn.
        deterministic: have every token computed by the same operations whatever stands beside it.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: HybridCache,
        rows: int,
        prefixes: PrefixCache | None,
        drafter: Drafter,
        prefill_tokens: int,
        deterministic: bool,
    ) -> None:
        self._model, self.cache, self.prefixes, self._drafter = model, cache, prefixes, drafter
        self._device = next(model.parameters()).device
        recorder = CudaGraphs() if self._device.type == "cuda" else None
        self.decode = DecodeStep(model, cache, rows, recorder)
        self._seat, self._prefill_tokens, self._deterministic = rows, prefill_tokens, deterministic
        self.waiting: deque[Request] = deque()
        self.running = Rows(cache)
        self.reading: Request | None = None
        self._changed: list[Request] = []
        self._returned: list[Request] = []
        self._step_seconds = 1.0
        self.guessing = Guessing(None if prefixes is None else cache.page_tokens)
        self.preemptions = 0

    @property
    def _active(self) -> list[Request]:
        """Requests that have a row, the youngest first."""
        reading = [] if self.reading is None else [self.reading]
        return sorted([*self.running, *reading], key=lambda request: -request.number)

    @torch.inference_mode()
    def turn(self) -> list[Request]:
        """Read some of a prompt, step all rows; gives the requests that have something new in their `fresh`."""
        for request in self._returned:
            request.fresh = Fresh()
        self._returned = []
        try:
            with invariant(self._deterministic):
                self._read()
                if self.running:
                    self._step()
        except BaseException:  # nobody knows what the rows hold now, so all of them are computed again
            for request in self._active:
                self._leave(request) if request.finish_reason else self._preempt(request)
            raise
        self._returned, self._changed = self._changed, []
        return self._returned

    def drop(self, request: Request) -> None:
        """Take a request out, wherever it is, if it is here at all."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request is self.reading or request in self.running:
            self._leave(request)

    def forget(self) -> None:
        """Let go of all that was computed with weights that are no longer the same."""
        self.decode.forget()
        if self.prefixes is not None:
            self.prefixes.forget_all()

    def _read(self) -> None:
        """Read on in prompts, as much as one turn may."""
        left = self._prefill_tokens
        while left > 0 and (self.reading is not None or self._admit()):
            left -= max(self._read_piece(), self.cache.page_tokens)  # a call of the model has its price, however short

    def _admit(self) -> bool:
        """Have the next request read, if there is room for it, and for those that run to go on."""
        if not self.waiting or len(self.running) == self._seat:
            return False
        request, cache = self.waiting[0], self.cache
        needed = cache.pages_for(len(request.ids)) + len(self.running)
        if self.running and needed > cache.pages - cache.pages_in_rows:
            return False
        self.reading, found = self.waiting.popleft(), None
        if request.draft_tokens is None and self._drafter.needs_hidden and self.guessing.rests(len(self.running) + 1):
            request.draft_tokens = 0
        if self.prefixes is not None and not request.scoring:
            found = self.prefixes.revive(self._seat, request.keys, request.ids, self._follows(request))
        if found is None:
            cache.clear(self._seat)
        else:
            request.newest = found.hidden
        if request.cached_tokens is None:
            request.cached_tokens = cache.lengths[self._seat]
        return True

    def _read_piece(self) -> int:
        """Read the next piece of a prompt, and have its row run if that was the last; gives the tokens read."""
        request = self.reading
        assert request is not None
        start, last = self.cache.lengths[self._seat], len(request.ids) - 1
        stop = self._end_of_piece(start, last)
        if not self._make_room(request, stop - start):
            return 0
        hidden = self._feed(request, start, stop)
        if hidden is not None and request.scoring:
            request.score(hidden[0], start, self._model.head)
            if request.finish_reason is not None:
                self._changed.append(request)
                self._leave(request)
                return stop - start
        if self._follows(request):
            known = [part for part in (request.newest, hidden) if part is not None]
            if known:
                hidden = torch.cat([part.view(1, -1, part.shape[-1]) for part in known], dim=1)
                next_tokens = request.ids[stop + 1 - hidden.shape[1] : stop + 1]
                self._drafter.follow(self._seat, [request], hidden, [next_tokens])
            request.newest = None
        if self.prefixes is not None and self.prefixes.wants(stop, last):
            newest = hidden[0, -1] if hidden is not None and self._follows(request) else None
            self.prefixes.keep(self._seat, request.keys, request.ids, newest)
        if stop == last:
            self.reading = None
            self.running.enter(request, self._seat)
            self.decode.look_again()
        return stop - start

    def _end_of_piece(self, start: int, last: int) -> int:
        """Pieces end where others' pieces of the same text end, and where a prefix may be remembered."""
        stop = min((start // self._prefill_tokens + 1) * self._prefill_tokens, last)
        border = last - last % self.cache.page_tokens
        return border if self.prefixes is not None and start < border < stop else stop

    def _feed(self, request: Request, start: int, stop: int) -> Float[Tensor, "1 T D"] | None:
        """Have the row that is read see some tokens; gives their hidden states if somebody needs them."""
        if start == stop:
            return None
        tokens = torch.tensor([request.ids[start:stop]], device=self._device)
        states = self.cache.states(self._seat, 1, stop - start)
        if self._follows(request) or request.scoring:
            return self._model.hidden(tokens, states=states)[0]
        self._model.remember(tokens, states)
        return None

    def _follows(self, request: Request) -> bool:
        """Whether the drafter wants the hidden states of a request."""
        return request.drafts and not request.rests and self._drafter.needs_hidden

    def _step(self) -> None:
        """Draw a token for every row, and one more for every right guess."""
        start, recorded = time.perf_counter(), self.decode.recorded
        drafting = self.running[: self.running.drafting]
        counts = self.guessing.counts(drafting, self.cache.lengths, len(self.running))
        times = 1 if any(counts) else self._steps_in_one_call()
        if not self._reserve(max(times, 1 + max(counts, default=0))):
            counts, times = [], 1
            self._reserve(1)
        guessed = len(counts) if any(counts) else 0
        guesses = self._drafter.propose(self.running[:guessed], counts) if guessed else []
        guesses += [[] for _ in self.running[guessed:]]
        most = max(map(len, guesses), default=0)
        if not self.running:
            return  # the youngest and only one waits for the one that is read
        fed = [
            request.ids[-1:] + guess + [0] * (most - len(guess))
            for request, guess in zip(self.running, guesses, strict=True)
        ]
        hidden, places = self.decode(self.running, fed, most > 0, times)
        kept = [
            request.draw(row, guess if most else None)
            for request, row, guess in zip(self.running, places, guesses, strict=True)
        ]
        self._changed += [request for request in self.running if request not in self._changed]
        if most:
            self.cache.keep(0, kept)
        self.guessing.count(self.running, guesses, kept)
        if self._drafter.needs_hidden and (drafting := self.running[: self.running.drafting]):
            next_tokens = [request.ids[-count:] for request, count in zip(drafting, kept, strict=False)]
            self._drafter.follow(0, drafting, hidden[: len(drafting)], next_tokens)
        self._remember(hidden, kept)
        for request in [request for request in self.running if request.finish_reason is not None]:
            self._leave(request)
        if self.decode.recorded == recorded:  # recording takes long, and happens once
            seconds = (time.perf_counter() - start) / (1 if most else len(places[0]))
            self._step_seconds = min(seconds, 1.25 * self._step_seconds)  # one that others held up says little
            self.guessing.time(len(fed), most, seconds)

    def _steps_in_one_call(self) -> int:
        """How many steps may be one call of the model, which spares what lies between them: of a small model that is a
        good part of a step. Nobody who waits has to wait much longer, and prefixes can be remembered as ever."""
        times = min(_MOST_STEPS, int(_CALL_SECONDS / self._step_seconds))
        if times < 2 or self.waiting or self.reading is not None:
            return 1
        page = self.cache.page_tokens
        for request, length in zip(self.running, self.cache.lengths, strict=False):
            if not request.plain:
                return 1
            times = min(times, request.remaining, times if self.prefixes is None else page - length % page)
        return times

    def _remember(self, hidden: Float[Tensor, "B T D"], kept: list[int]) -> None:
        """Have the prefixes that end at a border of pages remembered, of each answer the longest one."""
        if self.prefixes is None or not self.prefixes.fits:
            return
        for row, (request, count) in enumerate(zip(self.running, kept, strict=True)):
            length = self.cache.lengths[row]
            if length % self.cache.page_tokens or length >= len(request.ids) or request.finish_reason == "error":
                continue  # or it ended before the steps of the call did
            newest = hidden[row, count - 1] if self._follows(request) else None
            if request.answer_key is not None:
                self.prefixes.forget(request.answer_key)
            request.answer_key = self.prefixes.keep(row, request.keys, request.ids, newest)

    def _leave(self, request: Request) -> None:
        """Take the row from a request."""
        if request is self.reading:
            self.reading = None
            self.cache.release(self._seat)
        else:
            self.running.leave(request)

    def _reserve(self, tokens: int) -> bool:
        """Pages for so many more tokens of every running row; False if only fewer tokens can have some."""
        row = 0
        while row < len(self.running):
            if self.cache.reserve(row, tokens):
                row += 1
            elif not self._forget_prefix():
                if tokens > 1:
                    return False
                self._preempt(self._active[0])
                row = 0  # others may have moved
        return True

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Pages for so many more tokens of the row that is read; False if it had to give its own back."""
        while request is self.reading and not self.cache.reserve(self._seat, tokens):
            if not self._forget_prefix():
                self._preempt(self._active[0])
        return request is self.reading

    def _forget_prefix(self) -> bool:
        return self.prefixes is not None and self.prefixes.forget_one()

    def _preempt(self, request: Request) -> None:
        """Have a request wait again, before all that came later."""
        self._leave(request)
        request.followed = request.newest = None
        self.waiting.appendleft(request)
        self.preemptions += 1
