"""The errors a user can meet.

Each says what was seen, where, and what is allowed; the command line prints the message alone and keeps the
traceback for `--debug`. Slips of our own are `assert`s and keep their traceback.
"""


class SeqloomError(Exception):
    """Something outside the program's own logic went wrong; the message is meant for the user."""

    exit_code = 2
    """What the command line leaves with."""


class ConfigError(SeqloomError, ValueError):
    """A setting, recipe, argument or missing optional package: value seen, where, and the values allowed."""


class DataError(SeqloomError, ValueError):
    """A file, record, tokenizer or prompt that cannot be used: which one, where in it, and why."""


class CheckpointError(SeqloomError):
    """A run or model folder that is damaged, foreign, locked or not writable: which file and what to do."""


class NumericsError(SeqloomError, ArithmeticError):
    """A value that is not finite: at which step, in which module, and what was kept clean."""
