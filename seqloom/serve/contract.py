"""What the engine asks of a model and of a tokenizer. Whatever answers these can be served.

The state of a model is one list with an entry per layer, `None` where a layer remembers nothing; here all of them are
views of the one memory that an engine has for all its rows, from `new_cache`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.cache import HybridCache
from seqloom.nn.mtp_chain import Guesser
from seqloom.nn.whole_step import Steps

States = list[Any]
"""A view of a `HybridCache` for every layer, None where a layer remembers nothing."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def bos(self) -> int | None:
        """The token that every text begins with, if there is one."""
        ...

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        ...

    @property
    def size(self) -> int:
        """One more than the largest id it can produce."""
        ...

    def encode(self, text: str, *, specials: bool = ...) -> list[int]:
        """
        Args:
            specials: read the spelling of a special token as that token; asked for only where a model marks channels.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class LanguageModel(Protocol):
    """A causal language model that remembers."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def mtp(self) -> object | None:
        """The prediction block that `draft` uses, if the model has one."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def new_cache(self, rows: int, pages: int, page_tokens: int, ahead: int) -> HybridCache:
        """Empty memory of an engine, the prediction block's included: so many texts at a time over so many pages.

        Args:
            ahead: most tokens guessed in one call.
        """
        ...

    def hidden(
        self, tokens: Int[Tensor, "B T"], documents: None = None, states: States | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Hidden states that `head` and `draft` take, continuing from `states`, which are advanced by T tokens."""
        ...

    def remember(self, tokens: Int[Tensor, "B T"], states: States) -> None:
        """Advance the states as `hidden` does, without what only hidden states need."""
        ...

    def head(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position."""
        ...

    def head_of(self, tokens: Int[Tensor, "K"]) -> Callable[[Float[Tensor, "*B D"]], Float[Tensor, "*B K"]] | None:
        """The part of the head that gives the logits of some tokens; None where it cannot be had alone."""
        ...

    def decoder(self, rows: int, tokens: int, states: States) -> Steps | None:
        """`hidden`, `head` and the choice of tokens in one call, for so many tokens of each row, as long as the model
        is not changed; None where it has to be done one after the other."""
        ...

    def draft(
        self, hidden: Float[Tensor, "B T D"], next_tokens: Int[Tensor, "B T"], states: States
    ) -> Float[Tensor, "B T D"]:
        """One step further: from h_t and the token at t+1 to a hidden state whose logits guess the token at t+2."""
        ...

    def guesser(self, head: Any, tokens: Int[Tensor, "K"]) -> Guesser | None:
        """Several steps of `draft` and choices among some tokens in one call; None where there is no such call.

        Args:
            head: of these tokens, from `head_of`.
        """
        ...
