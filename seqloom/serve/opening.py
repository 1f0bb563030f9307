"""What an engine is opened with: a model and its tokenizer, in the formats that were asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.rooms import load
from seqloom.data.tokenizer import open_tokenizer
from seqloom.nn.cache import HybridCache
from seqloom.nn.state_formats import KVFormat, SsmFormat
from seqloom.serve.config import Weights
from seqloom.serve.contract import LanguageModel, Tokenizer
from seqloom.serve.drafting import Drafter, MtpDrafter, NgramDrafter

DrafterName = Literal["auto", "mtp", "ngram"]


def open_source(
    source: str | Path | tuple[LanguageModel, Tokenizer],
    kv_cache: KVFormat | None,
    ssm_state: SsmFormat | None,
    weights: Weights,
) -> tuple[LanguageModel, Tokenizer]:
    """The model, ready to answer; arguments and errors as of `Engine`."""
    model: LanguageModel
    if isinstance(source, tuple):
        model, tokenizer = source
    else:
        device = pick_device("auto")
        loaded = load(source, packed=weights == "as_stored" and device.type == "cpu")
        if not hasattr(loaded, "vocab_size"):
            raise ConfigError(f"{source}: writes no text; it is a {type(loaded).__name__}, and no language model")
        model, tokenizer = loaded.to(device), open_tokenizer(source)
    if tokenizer.size > model.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.size} tokens but the model only {model.vocab_size}; "
            "they do not belong together"
        )
    _keep_states(model, kv_cache, ssm_state)
    _pack(model, weights)
    if isinstance(model, nn.Module) and not isinstance(source, tuple) and device.type == "cpu":
        from seqloom.nn.packed import settle

        settle(model)
    return model, tokenizer


def open_drafter(name: DrafterName, model: LanguageModel, cache: HybridCache) -> Drafter:
    """
    Raises:
        ConfigError: the model has no prediction block.
    """
    if name == "ngram" or (name == "auto" and model.mtp is None):
        return NgramDrafter()
    if model.mtp is None:
        raise ConfigError("drafter: 'mtp' is not allowed; this model has no prediction block, so use 'ngram'")
    return MtpDrafter(model, cache)


def whole(**settings: object) -> None:
    """Make sure that settings are counts.

    Raises:
        ConfigError: one is not.
    """
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}: {value!r} is not allowed; it must be a whole number from 1")


def versions(model: LanguageModel) -> list[tuple[int, int]]:
    """Where the weights are and how often they were written to; another answer means that they have changed.

    Those made in inference mode do not count; nobody learns with them.
    """
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in model.parameters()]


def _keep_states(model: Any, kv_cache: KVFormat | None, ssm_state: SsmFormat | None) -> None:
    wanted: dict[str, Any] = {"keys_values": kv_cache, "ssm": ssm_state}
    if wanted := {name: format for name, format in wanted.items() if format is not None}:
        if not hasattr(model, "keep_states"):
            raise ConfigError(f"kv_cache, ssm_state: a {type(model).__name__} stores its states in one way only")
        model.keep_states(replace(model.state_formats, **wanted))


def _pack(model: LanguageModel, weights: Weights) -> None:
    if weights not in get_args(Weights):
        allowed = ", ".join(get_args(Weights))
        raise ConfigError(f"weights: {weights!r} is not allowed; it must be one of {allowed}")
    if weights != "as_stored":
        from seqloom.nn.packed import pack_linears

        if not isinstance(model, nn.Module):
            raise ConfigError(f"weights: {weights!r} is not allowed; the layers of this model are unknown")
        pack_linears(model, weights)
