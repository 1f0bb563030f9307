"""Settings of the text pipeline; free of torch so that the command line stays light."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from seqloom.core.config import Ge, Gt, Interval, MinLen, config
from seqloom.core.errors import ConfigError

YOUR_DATA = "FILE"
"""`path` of a recipe that works on the data of whoever trains it."""


@config
class SourceConfig:
    """One corpus of a mixture."""

    path: Annotated[str, MinLen(1)]
    """A file or folder (.txt, .jsonl, .parquet, source code; .gz, .xz and .zst are unpacked), a built-in corpus such as
    "python:stdlib", or a Hugging Face dataset as "hf:name[:config]"."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Share of training rows drawn from this source, relative to the other sources."""

    @property
    def title(self) -> str:
        """What it is called on pages that others read, who have no use for where it lies here."""
        return self.path if ":" in self.path else self.path.rstrip("/").rpartition("/")[2]


@config
class PhaseConfig:
    """From a point of the run on, other weights (Nemotron 3: diversity first, then quality)."""

    start: Annotated[float, Interval(gt=0, lt=1)]
    """Share of all steps after which this phase begins."""
    weights: tuple[Annotated[float, Ge(0)], ...]
    """One weight per source; 0 leaves a source out."""


@config
class DataConfig:
    """What text goes in and how it becomes tokens."""

    sources: tuple[SourceConfig, ...]
    phases: tuple[PhaseConfig, ...] = ()
    form: Literal["documents", "conversations"] = "documents"
    """"documents" learns every token of a text. "conversations" learns the answers in records of chats, of questions
    with their answers, or of text, rendered by the tokenizer's own chat template."""
    template_options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Settings of the chat template, such as enable_thinking; conversations only."""
    tokenizer: str = "new"
    """"new" trains a byte-level BPE on the sources; otherwise a tokenizer.json, a folder holding one, or a
    sentencepiece .model file."""
    text_field: str = "text"
    """Key of the text in JSON lines, or column in parquet and datasets."""
    valid_fraction: Annotated[float, Interval(gt=0, lt=0.5)] = 0.02
    """Share of documents or conversations held back for evaluation, chosen by content hash so that duplicates stay on
    one side."""
    bad_line_limit: Annotated[int, Ge(0)] = 100
    """Unreadable records tolerated (each is counted and the first ones are named) before the run is refused."""
    max_repeats: Annotated[float, Gt(0)] | None = None
    """Refuse a mixture that shows any source more often than this. None only reports it."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError(
                "task.data.sources: name at least one source, e.g. --data my_folder or --data python:stdlib"
            )
        if self.template_options and self.form != "conversations":
            raise ConfigError(
                "task.data.template_options: documents have no chat template; set task.data.form to conversations"
            )
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ConfigError(f"task.data.phases: starts must rise strictly, got {starts}")
        for phase in self.phases:
            if len(phase.weights) != len(self.sources):
                raise ConfigError(
                    f"task.data.phases: {len(phase.weights)} weights for {len(self.sources)} sources; "
                    "give one per source"
                )
            if not any(phase.weights):
                raise ConfigError("task.data.phases: at least one weight of a phase must be above 0")
