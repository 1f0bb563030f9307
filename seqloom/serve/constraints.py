"""Answers of a given form: which tokens may come next so that the text can still become one.

llguidance walks the grammar over the bytes of our tokens and gives a mask for every place. What it is given comes from
strangers, so text, nesting and number of alternatives are bounded here, and the work of every step by its own limits.
"""

import json
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from jaxtyping import Bool

from seqloom.core.errors import ConfigError, DataError
from seqloom.core.extras import require
from seqloom.serve.config import JSON_SPACING, Grammar
from seqloom.serve.vocabulary import Vocabulary

MAX_CHARACTERS = 65_536
"""Of a schema, expression or grammar."""
MAX_DEPTH = 32
"""Objects and lists inside one another in a schema, brackets in an expression or grammar."""
MAX_NODES = 4_000
"""Values in a schema."""
KEPT = 64
"""Compiled grammars that are kept for the next request."""

_LIMITS = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 50_000,
}


_STUCK = "NoExtensionBias"
"""What llguidance says where no token is allowed."""


class Matcher:
    """How far an answer has come in its grammar."""

    def __init__(self, inner: Any, vocabulary: int, ends: list[int]) -> None:
        self._inner, self._size, self._ends = inner, vocabulary, ends
        self._words = np.zeros(-(-vocabulary // 32), dtype=np.int32)
        self.begun = False
        """Whether any token was taken in."""

    def mask(self) -> Bool[np.ndarray, "V"]:
        """The tokens that may come next; those that end the answer once the text is whole, and then no others if
        nothing can be added.

        Raises:
            ConfigError: the grammar takes more work than is allowed.
        """
        self._inner.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._complain()
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")[: self._size].view(bool)
        bits[self._ends] = self._inner.is_accepting()
        return bits

    def take(self, token: int) -> None:
        """Go on by a token that the mask allows; the end of the answer changes nothing.

        Raises:
            ConfigError: the grammar takes more work than is allowed.
        """
        self.begun = True
        if token not in self._ends:
            self._inner.consume_token(token)
            self._complain()

    def _complain(self) -> None:
        if self._inner.is_error():
            error = _short(self._inner.get_error())
            raise ConfigError(f"grammar: {'no text of this form can go on here' if error == _STUCK else error}")


class Grammars:
    """Compiles grammars for one vocabulary and keeps the last ones.

    Raises:
        ConfigError: llguidance is not installed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._size = vocabulary.size
        self._tokens = _tokens(vocabulary)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar, ends: list[int]) -> Matcher:
        """A matcher at the beginning of a text.

        Args:
            ends: the tokens that end an answer.
        Raises:
            ConfigError: the grammar cannot be used.
        """
        with self._lock:
            inner = self._compiled.get(grammar)
        if inner is None:  # compiled outside of the lock, so that a slow one holds up none that are ready
            inner = _compile(grammar, self._tokens)
        with self._lock:
            self._compiled[grammar] = inner
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return Matcher(inner.deep_copy(), self._size, ends)


def check_grammar(grammar: Grammar) -> None:
    """See whether a grammar can be used, without a tokenizer.

    Raises:
        ConfigError: it cannot, and why; or llguidance is not installed.
    """
    _compile(grammar, None)


def _compile(grammar: Grammar, tokens: Any) -> Any:
    """A matcher at the beginning of a text; None without tokens."""
    llguidance: Any = require("serve", "llguidance")
    _check_size(grammar)
    make = llguidance.LLMatcher
    if grammar.kind == "regex":
        text = make.grammar_from_regex(grammar.text)
    elif grammar.kind == "lark":
        text = make.grammar_from_lark(grammar.text)
    else:
        spacing = JSON_SPACING if grammar.text.lstrip()[:1] in ("", "{") else None  # `true` is a schema, too
        try:
            text = make.grammar_from_json_schema(grammar.text or '{"type": "object"}', defaults=spacing)
        except ValueError as slip:  # NaN is read by Python, and no JSON
            raise ConfigError(f"grammar: not a {grammar.kind} that can be used: {_short(str(slip))}") from None
    limits = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)
    if tokens is None:
        error, inner = make.validate_grammar(text, None, limits=limits), None
    else:
        inner = make(tokens, text, log_level=0, limits=limits)
        error = inner.get_error()
    if error:
        raise ConfigError(f"grammar: not a {grammar.kind} that can be used: {_short(error)}")
    return inner


def _check_size(grammar: Grammar) -> None:
    if len(grammar.text) > MAX_CHARACTERS:
        raise ConfigError(f"grammar: {len(grammar.text):,} characters are not allowed; at most {MAX_CHARACTERS:,} are")
    try:
        grammar.text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"grammar: character {error.start} is half a surrogate pair, not text") from None
    if grammar.kind != "json_schema":
        depth = _bracket_depth(grammar.text)
    else:
        try:
            schema = json.loads(grammar.text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"grammar: the schema is not JSON: {error}") from None
        depth, nodes = _extent(schema)
        if nodes > MAX_NODES:
            raise ConfigError(f"grammar: {nodes:,} values in a schema are not allowed; at most {MAX_NODES:,} are")
    if depth > MAX_DEPTH:
        raise ConfigError(f"grammar: {depth} levels of nesting are not allowed; at most {MAX_DEPTH} are")


def _bracket_depth(text: str) -> int:
    """How deep brackets are nested at most; escaped ones and those in quotes count too, since that is safe."""
    depth = deepest = 0
    for character in text:
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        deepest = max(deepest, depth)
    return deepest


def _extent(schema: Any) -> tuple[int, int]:
    """Depth and number of values."""
    depth, nodes, level = 0, 0, [schema]
    while level:
        depth, nodes = depth + 1, nodes + len(level)
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = [value for values in inner for value in values]
    return depth, nodes


def _tokens(vocabulary: Vocabulary) -> Any:
    """The vocabulary as llguidance knows it."""
    llguidance: Any = require("serve", "llguidance")
    tokenizer = vocabulary.tokenizer
    definition = getattr(tokenizer, "definition", None)
    try:
        if definition is not None:
            return llguidance.LLTokenizer(definition, n_vocab=vocabulary.size, eos_token=tokenizer.eos)
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(vocabulary)), n_vocab=vocabulary.size)
    except ValueError as error:
        raise DataError(f"grammars cannot be used with this tokenizer: {_short(str(error))}") from None


class _Tokens:
    """A tokenizer of any kind in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = vocabulary.tokenizer.eos, vocabulary.tokenizer.bos
        self.tokens = [piece or b"" for piece in vocabulary.pieces]
        self.special_token_ids = [index for index, piece in enumerate(vocabulary.pieces) if piece is None]
        self._encode = vocabulary.tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _short(message: str) -> str:
    """The first line of a message and what is wrong with an expression, without what would fill a screen."""
    line, *more = message.strip().split("\n")
    reasons = [each.removeprefix("error: ") for each in more if each.startswith("error: ")]
    return " ".join([line if len(line) <= 300 else line[:300] + "…", *reasons])
