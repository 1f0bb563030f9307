"""A byte-level BPE tokenizer as GGUF keeps it: pieces, merges, and the name of the rule that cuts text into words.

llama.cpp has these rules compiled in and knows each by a name, so a file can only name one of them. The rules of public
tokenizers have theirs. That of the tokenizers trained here has none: the nearest is named, which cuts most texts alike
but not the indentation of code; token ids mean the same in any case.
"""

import json
from pathlib import Path
from typing import Any

from seqloom.core.errors import DataError
from seqloom.data.token_pieces import is_byte_level
from seqloom.data.tokenizer import open_tokenizer

_RULES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "tekken",
}
"""Regular expression of a public tokenizer -> name of the rule there."""
_NEAREST = "qwen2"


def write_tokenizer(gguf: Any, writer: Any, folder: Path, vocab_size: int) -> list[str]:
    """Add the tokenizer of a model folder; ids up to `vocab_size` that it does not use are padding.

    Returns:
        what differs there, in whole sentences.
    Raises:
        DataError: there is none, or it is of another kind.
    """
    tokenizer = open_tokenizer(folder)
    if tokenizer.size > vocab_size:
        raise DataError(f"{folder}: the tokenizer has {tokenizer.size} tokens but the model only {vocab_size}")
    definition = json.loads(tokenizer.definition)
    model = definition["model"]
    if model.get("type") != "BPE" or not is_byte_level(definition):
        raise DataError(f"{folder}: its tokenizer is no byte-level BPE, and others are not written to GGUF")
    kinds = gguf.TokenType
    pieces, types = [f"[PAD{index}]" for index in range(vocab_size)], [kinds.UNUSED] * vocab_size
    for piece, index in model["vocab"].items():
        pieces[index], types[index] = piece, kinds.NORMAL
    for added in definition.get("added_tokens") or ():
        pieces[added["id"]] = added["content"]
        types[added["id"]] = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
    rule = _rule(definition)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule or _NEAREST)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(tokenizer.bos is not None)
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
        writer.add_eot_token_id(tokenizer.answer_end)
    if rule is not None:
        return []
    return [
        f"llama.cpp has no name for how this tokenizer cuts text into words; '{_NEAREST}' is the nearest, and cuts "
        "line breaks with indentation otherwise. Give it token ids where it must read exactly the same."
    ]


def _rule(definition: dict[str, Any]) -> str | None:
    """The name of the rule by which a tokenizer cuts text into words, if there is one."""
    before = definition.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    splits = [step for step in steps if step.get("type") == "Split"]
    if not splits:
        return (
            "gpt-2" if any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps) else None
        )
    return _RULES.get((splits[0].get("pattern") or {}).get("Regex", "")) if len(splits) == 1 else None
