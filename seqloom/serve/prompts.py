"""What may be asked of an engine: a text or token ids, checked and turned into ids before anything is computed."""

from collections.abc import Sequence
from typing import Literal

from seqloom.core.errors import ConfigError, DataError
from seqloom.serve.config import Sampling
from seqloom.serve.contract import Tokenizer
from seqloom.serve.drafting import MOST_GUESSES

Prompt = str | Sequence[int]
"""A text, which is put after the beginning-of-text token if there is one, or token ids as they are.
Nothing at all is the beginning of a text."""

DraftTokens = int | Literal["auto"]
"""Tokens to guess ahead in a step; auto as many as pay."""


def token_ids(prompt: Prompt, tokenizer: Tokenizer, vocab_size: int, name: str) -> list[int]:
    """The tokens of a prompt.

    Args:
        name: of the prompt, as a message calls it.
    Raises:
        DataError: it is no prompt, or one that this model cannot continue.
    """
    beginning = [] if tokenizer.bos is None else [tokenizer.bos]
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{name}: character {error.start} is half a surrogate pair, not text") from None
        prompt = [*beginning, *tokenizer.encode(prompt)]
    if not isinstance(prompt, list | tuple):
        raise DataError(f"{name}: expected a text or a list of token ids, got {type(prompt).__name__}")
    for place, token in enumerate(prompt):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise DataError(
                f"{name}: {token!r} at place {place} is not a token id; "
                f"they are whole numbers from 0 to {vocab_size - 1}"
            )
    if not (ids := list(prompt) or beginning):
        raise DataError(f"{name}: it is empty, and this tokenizer has no token for the beginning of a text")
    return ids


def checked_draft_tokens(draft_tokens: DraftTokens) -> int | None:
    """Tokens to guess in a step; None has the engine choose.

    Raises:
        ConfigError: it is neither a number that is allowed nor auto.
    """
    if draft_tokens == "auto":
        return None
    if not isinstance(draft_tokens, int):
        raise ConfigError(f"draft_tokens: {draft_tokens!r} is not allowed; it must be a whole number or 'auto'")
    if not 0 <= draft_tokens <= MOST_GUESSES:
        raise ConfigError(
            f"draft_tokens: {draft_tokens} is not allowed; it must be a whole number from 0 to {MOST_GUESSES}"
        )
    return draft_tokens


def paired(prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None) -> list[tuple[Prompt, Sampling]]:
    """Every prompt with its settings.

    Args:
        sampling: one setting for all prompts, or one for each.
    Raises:
        ConfigError, DataError: they do not go together.
    """
    if not isinstance(prompts, list | tuple):
        raise DataError(f"prompts: expected a list of texts or of token-id lists, got {type(prompts).__name__}")
    if sampling is None or isinstance(sampling, Sampling):
        sampling = [sampling or Sampling()] * len(prompts)
    if [type(each) for each in sampling] != [Sampling] * len(prompts):
        raise ConfigError(f"sampling: expected one Sampling, or a list with one for each of {len(prompts)} prompts")
    return list(zip(prompts, sampling, strict=True))
