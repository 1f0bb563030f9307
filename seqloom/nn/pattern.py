"""The layer pattern: one character a layer, and one parser for every spelling found in public configs.

    M  Mamba-2        *  attention        -  MLP        E  mixture of experts

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
                    f"{where}: character {index} of '{spelling}' is '{letter}'; the alphabet is {alphabet}"
                )
    else:
        unknown = [name for name in spelling if name not in _NAMES]
        if unknown:
            raise ConfigError(f"{where}: unknown layer name '{unknown[0]}'; known: {', '.join(_NAMES)}")
        pattern = "".join(_NAMES[name] for name in spelling)
    if not pattern:
        raise ConfigError(f"{where}: a model needs at least one layer")
    return pattern


def layer_names(pattern: str) -> list[str]:
    """The pattern as the list of names that public config files use."""
    return [{"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}[letter] for letter in pattern]
