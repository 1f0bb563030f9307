"""The layer pattern: one character a layer, and one parser for every spelling found in public configs.

    M  Mamba-2        *  attention        -  MLP        E  mixture of experts

In strings `|` marks a cut between pipeline stages and means nothing here; `/` begins the pattern of a prediction block
(MTP), once for every depth it is trained to: `MEME/*E/*E`.
Paper: Nemotron-H, section 2; the list spellings are those of later public config files.
"""

from collections.abc import Sequence

from seqloom.core.errors import ConfigError

KINDS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "E": "mixture of experts"}

_NAMES = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def parse_pattern(spelling: str | Sequence[str], where: str = "pattern") -> str:
    """Read a layer pattern from a string (`M-M*E`, with or without `|` pipeline cuts) or a list of layer names.

    Raises:
        ConfigError: empty, or a character or name outside the alphabet; the position and the alphabet are named.
    """
    if isinstance(spelling, str):
        pattern = spelling.replace("|", "")
        for index, letter in enumerate(spelling):
            if letter not in KINDS and letter != "|":
                alphabet = ", ".join(f"'{key}' {name}" for key, name in KINDS.items())
                raise ConfigError(
                    f"{where}: character {index} of '{spelling}' is {letter!r}; the alphabet is {alphabet}"
                )
    else:
        unknown = [name for name in spelling if name not in _NAMES]
        if unknown:
            raise ConfigError(f"{where}: unknown layer name {unknown[0]!r}; known: {', '.join(_NAMES)}")
        pattern = "".join(_NAMES[name] for name in spelling)
    if not pattern:
        raise ConfigError(f"{where}: a model needs at least one layer")
    return pattern


def split_depths(spelling: str, where: str = "pattern") -> tuple[str, str | None, int]:
    """Read a pattern string with the prediction block in it.

    Returns:
        the layers, the block's layers (None without one), and how many times the block is written.
    Raises:
        ConfigError: as `parse_pattern`, or the blocks differ; files hold one block, which is repeated.
    """
    main, *blocks = spelling.split("/")
    pattern, parsed = parse_pattern(main, where), [parse_pattern(block, where) for block in blocks]
    for block in parsed:
        if block != parsed[0]:
            raise ConfigError(
                f"{where}: '{spelling}' has the prediction blocks '{parsed[0]}' and '{block}'; they must be equal, "
                "since they share one set of weights"
            )
    return pattern, parsed[0] if parsed else None, len(parsed)


def layer_names(pattern: str) -> list[str]:
    """The pattern as the list of names that public config files use."""
    return [{"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}[letter] for letter in pattern]
