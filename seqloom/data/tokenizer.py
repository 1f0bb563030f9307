"""Text to token ids and back, with the few ids that have a meaning of their own.

A new tokenizer is a byte-level BPE: every text can be encoded and decodes to itself. Words take the space or symbol
before them, digits stand alone, and a line break takes the indentation of the next line along, which makes indented
code cheap. Its first ids follow the public Nemotron family, so that chat templates and servers find what they expect.
Existing tokenizers are used as they are; whatever their origin, a saved folder gives the same ids in `transformers`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from seqloom.core.checkpoint.json_file import read_config
from seqloom.core.errors import CheckpointError, DataError
from seqloom.data.chat_template import ChatTemplate
from seqloom.data.sentencepiece_model import convert
from seqloom.data.template_files import read_templates, read_text, write_templates
from seqloom.data.token_pieces import token_pieces

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPECIALS = (
    *(PAD, BOS, EOS),
    *(f"<reserved_{index}>" for index in range(3, 10)),
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
"""The first ids of a new tokenizer, in order."""

WORDS = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",  # a word, with one space or symbol before it
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?",  # symbols, with the line break and indentation after them
        r"\s*[\r\n]+[ \t]*",
        r"\s+(?!\S)",  # a run of spaces, but for the one that the next word takes
        r"\s+",
    )
)

FAMILIAR_ENDS = (EOS, "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")
"""How public tokenizers call the end of a document; consulted when no file says it."""

MAX_BYTES = 128 << 20
"""Of a tokenizer.json; a vocabulary of 262,144 entries takes 33 MB."""
MAX_VALUES = 4_000_000
"""In a tokenizer.json."""
MAX_SIZE = 1 << 22
"""Token ids are smaller than this."""

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_USER_PARALLELISM = os.environ.get(_PARALLELISM)


class TextTokenizer:
    """A tokenizer and the ids that mark where documents begin and end."""

    def __init__(
        self,
        definition: str,
        *,
        bos: int | None,
        eos: int,
        pad: int | None,
        chat_template: str | Mapping[str, str] | None = None,
    ):
        """Args:
        definition: content of a tokenizer.json.
        pad: id of padding, which is never seen by a loss; None takes `eos`.
        chat_template: the template that came with the tokenizer, or several by name: `default`, and `tool_use` for
            conversations with tools.
        """
        self.definition, self._inner = definition, _load(definition)
        self._inner.encode_special_tokens = True
        self.size = max(self._inner.get_vocab().values()) + 1
        """Number of ids: one more than the highest."""
        self.bos, self.eos, self.pad = bos, eos, eos if pad is None else pad
        self.templates = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        """The chat templates that came with the tokenizer, by name."""

    @property
    def chat_template(self) -> str | None:
        """The text of the template that chats are rendered with, if there is one."""
        return self.templates.get("default")

    @cached_property
    def template(self) -> ChatTemplate | None:
        """What renders chats; None if no template came with the tokenizer.

        Raises:
            DataError: the template cannot be rendered here.
        """
        if not self.templates:
            return None
        if self.chat_template is None:
            raise DataError(f"of the chat templates {', '.join(self.templates)} none is called 'default'")
        ids = {"bos_token": self.bos, "eos_token": self.eos}
        names = {name: self._inner.id_to_token(index) or "" for name, index in ids.items() if index is not None}
        return ChatTemplate(self.chat_template, names, with_tools=self.templates.get("tool_use"))

    @cached_property
    def answer_end(self) -> int:
        """The token that ends an answer in a chat: what the template writes after one, or else the end of a text."""
        mark = self.template.stop_mark if self.template else None
        ids = self.encode(mark, specials=True) if mark else []
        return ids[0] if len(ids) == 1 else self.eos

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Token ids of a text, without begin and end marks.

        Args:
            specials: read the spelling of a special token, such as `<|im_end|>`, as that token. Off, so that no
                document or prompt can smuggle one in.
        """
        inner = self._with_specials if specials else self._inner
        return inner.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str, *, specials: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and for each from which to which character of the text it stands.

        Together they cover the text without a gap: white space that a tokenizer drops or hides belongs to the token
        after it. Several tokens that spell one character have the place of that character, all of them.
        """
        found = (self._with_specials if specials else self._inner).encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = []
        reached = 0
        for start, end in found.offsets:
            offsets.append((min(start, reached), max(end, reached)))
            reached = offsets[-1][1]
        if offsets:
            offsets[-1] = (offsets[-1][0], len(text))
        return found.ids, offsets

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on all cores."""
        with _all_cores():
            return [found.ids for found in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """The text of token ids, with special tokens left out or, if asked for, spelled out."""
        return self._inner.decode(list(ids), skip_special_tokens=not specials)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each token stands for, [V] int64; 0 for special tokens."""
        counts = np.zeros(self.size, dtype=np.int64)
        for index, piece in token_pieces(self.definition).items():
            counts[index] = len(piece)
        return counts

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the ids of a document."""
        return hashlib.sha256(json.dumps([self.definition, self.bos, self.eos, self.pad]).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the small files beside it that `transformers` reads."""
        tokens = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        names = {key: self._inner.id_to_token(index) for key, index in tokens.items() if index is not None}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        texts = {
            "tokenizer.json": self.definition,
            "tokenizer_config.json": json.dumps(settings, indent=2),
            "special_tokens_map.json": json.dumps(names, indent=2),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_templates(folder, self.templates)

    @cached_property
    def _with_specials(self) -> Tokenizer:
        return _load(self.definition)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Learn a byte-level BPE of at most `vocab_size` entries; few texts give fewer.

    Raises:
        DataError: the special tokens and the 256 bytes do not fit in `vocab_size`.
    """
    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise DataError(
            f"a new tokenizer has at least {smallest} entries ({len(SPECIALS)} special tokens and 256 bytes), but the "
            f"model's vocab_size is {vocab_size}; raise model.vocab_size"
        )
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    bos, eos, pad = (SPECIALS.index(token) for token in (BOS, EOS, PAD))
    inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _all_cores():
        inner.train_from_iterator(texts, trainer)
    return TextTokenizer(inner.to_str(), bos=bos, eos=eos, pad=pad)


def open_tokenizer(path: str | Path) -> TextTokenizer:
    """Open a tokenizer.json, a folder that holds one, or a sentencepiece .model file.

    Raises:
        DataError: there is none, it cannot be read, or nothing says which token ends a document.
        ConfigError: a .model file needs the optional package sentencepiece.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    file = next((path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()), path)
    if not file.is_file():
        raise DataError(
            f"{path}: no tokenizer here; expected a tokenizer.json, a folder that holds one, or a sentencepiece .model"
        )
    if file.suffix == ".model":
        definition, ids = convert(file)
        return TextTokenizer(definition, **ids)
    definition, vocabulary = _read_definition(file)
    notes = [_read_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    notes += [_read_json(folder / name) for name in ("config.json", "generation_config.json")]
    eos = _special("eos", notes, vocabulary)
    if eos is None:
        eos = next((vocabulary[token] for token in FAMILIAR_ENDS if token in vocabulary), None)
    if eos is None:
        raise DataError(
            f'{file}: nothing says which token ends a document; put "eos_token" into {folder / "tokenizer_config.json"}'
        )
    bos, pad = _special("bos", notes, vocabulary), _special("pad", notes, vocabulary)
    return TextTokenizer(definition, bos=bos, eos=eos, pad=pad, chat_template=read_templates(folder, notes[0]))


def _load(definition: str) -> Tokenizer:
    inner = Tokenizer.from_str(definition)
    inner.no_padding()
    inner.no_truncation()
    return inner


def _special(role: str, notes: Sequence[dict[str, Any]], vocabulary: dict[str, int]) -> int | None:
    """The id of a role as the files beside a tokenizer give it: by spelling, or by number or list of numbers."""
    for note in notes:
        token = note.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in vocabulary:
            return vocabulary[token]
        index = note.get(f"{role}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and index in vocabulary.values():
            return index
    return None


def _read_definition(file: Path) -> tuple[str, dict[str, int]]:
    """A tokenizer.json by someone else, and its vocabulary."""
    definition = read_text(file, MAX_BYTES)
    if sum(map(definition.count, ",[{")) > MAX_VALUES:
        raise DataError(f"{file}: more than {MAX_VALUES:,} values; no tokenizer has so many")
    try:
        inner = _load(definition)
        fields = json.loads(definition)
        vocabulary = inner.get_vocab()
    except Exception as error:  # the package raises plain Exception
        raise DataError(f"{file}: not a tokenizer.json that can be read: {error}") from None
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < MAX_SIZE:
        raise DataError(f"{file}: its highest token id is {highest:,}; allowed are 0 to {MAX_SIZE - 1:,}")
    ids: dict[int, str] = {}
    for token in fields.get("added_tokens") or ():
        index, text = token["id"], token["content"]
        if ids.setdefault(index, text) != text:
            raise DataError(f"{file}: the added tokens {ids[index]!r} and {text!r} have the same id {index}")
        if vocabulary.get(text) != index:
            raise DataError(
                f"{file}: the added token {text!r} has the id {index}, in the vocabulary {vocabulary[text]}"
            )
    return definition, vocabulary


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not os.path.lexists(path):
        return {}
    try:
        return read_config(path)
    except CheckpointError as error:
        raise DataError(str(error)) from None


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Let tokenizers use threads here and nowhere else: otherwise it warns in every process forked later."""
    if _USER_PARALLELISM is None:
        os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        if _USER_PARALLELISM is None:
            os.environ[_PARALLELISM] = "false"
