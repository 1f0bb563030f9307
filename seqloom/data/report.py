"""What a user should see of the data before step 1: how much of what, what was left out, and one row of it.

The row is shown as the model gets it, with document borders and its loss mask: of text, the tokens that carry no target
are marked; of conversations, the tokens that are read but not learned. The report is plain data, stored with the run;
`report_lines` is the same for a terminal.
"""

import platform
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from seqloom.data.mixture import Mixture
from seqloom.data.rows import NO_DOCUMENT, NO_TARGET, Rows, RowSource, Split
from seqloom.data.sources import Source
from seqloom.data.tokenizer import TextTokenizer

UNPRINTABLE = r"[^\n\t\x20-\x7e\xa0-\U0010ffff]"
EXAMPLE_LINES = 24
"""Most lines of the example that a terminal gets."""
WORTH_REPEATING = 4.0
"""Times that text can be shown before another showing is worth much less than new text (Muennighoff et al. 2023)."""
EXAMPLE_TITLES = {
    "documents": "first training row (tokens without a target between « and »):",
    "conversations": "first training row (between « and » what is read, but not learned):",
}


def data_report(
    form: str,
    sources: Sequence[Source],
    splits: Sequence[Split],
    tokenizer: TextTokenizer,
    mixture: Mixture,
    rows_total: int,
    length: int,
    train: RowSource,
) -> dict[str, Any]:
    """Describe prepared data.

    Args:
        form: what the sources hold, as in `DataConfig.form`.
        rows_total: training rows the run will draw.
        length: tokens of a row.
    """
    drawn = mixture.drawn(rows_total)
    described = [_source(*parts, rows_total) for parts in zip(sources, splits, mixture.rows, drawn, strict=True)]
    if form == "conversations":
        for found, split in zip(described, splits, strict=True):
            found |= _packed(split, length)
    return {
        "form": form,
        "tokenizer": {"entries": tokenizer.size, "sha256": tokenizer.digest},
        "rows": rows_total,
        "sources": described,
        "example": _example(train.rows([0]), tokenizer, form),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of plain text."""
    lines = [f"tokenizer  {report['tokenizer']['entries']:,} entries, sha256 {report['tokenizer']['sha256'][:12]}"]
    form = report.get("form", "documents")
    for source in report["sources"]:
        lines += _source_lines(source, _conversation_lines if form == "conversations" else _document_lines)
    example = [line for span in report["example"] for line in _span_lines(span)]
    if (more := len(example) - EXAMPLE_LINES) > 0:
        example[EXAMPLE_LINES:] = [f"           and {more:,} lines more; all of them are in data.json of the run"]
    return [*lines, EXAMPLE_TITLES[form], *example]


def _source(source: Source, split: Split, rows: int, drawn: int, rows_total: int) -> dict[str, Any]:
    train, valid, facts = split
    tokens, n_bytes = train.tokens + valid.tokens, train.n_bytes + valid.n_bytes
    return {
        "source": source.name,
        **({"python": platform.python_version()} if source.built_in else {}),
        "list_sha256": source.list_digest,
        "files": len(source.files),
        "files_not_read": dict(source.not_read),
        "bytes": n_bytes,
        "tokens": tokens,
        "bytes_per_token": n_bytes / tokens,
        "valid": {"documents": valid.documents, "tokens": valid.tokens, "bytes": valid.n_bytes},
        "rows": rows,
        "rows_drawn": drawn,
        "share": drawn / rows_total,
        "repeats": drawn / rows,
        **facts,
    }


def _packed(split: Split, length: int) -> dict[str, Any]:
    """What is to be known of conversations besides."""
    train, valid, facts = split
    return {
        "sequences": train.documents + valid.documents,
        "learned": facts["train"]["learned"] + facts["valid"]["learned"],
        "row_tokens": length,
        "padding": 1 - train.tokens / (len(train) * length),
    }


def _example(rows: Rows, tokenizer: TextTokenizer, form: str) -> list[dict[str, Any]]:
    """A row as spans of equal document and equal answer to whether its tokens have a target, or are one."""
    tokens, targets, documents = (column[0].tolist() for column in rows)
    if form == "conversations":
        targets = [NO_TARGET, *targets[:-1]]
    cells = [cell for cell in zip(tokens, targets, documents, strict=True) if cell[2] != NO_DOCUMENT]
    spans = groupby(cells, key=lambda cell: (cell[2], cell[1] != NO_TARGET))
    return [
        {
            "document": document,
            "target": target,
            "text": tokenizer.decode([token for token, _, _ in span], specials=True),
        }
        for (document, target), span in spans
    ]


def _source_lines(source: dict[str, Any], counts: Callable[[dict[str, Any]], Iterator[str]]) -> Iterator[str]:
    python = f", Python {source['python']}" if "python" in source else ""
    yield f"source     {source['source']} ({source['files']:,} files{python}, list sha256 {source['list_sha256'][:12]})"
    yield from (f"           {line}" for line in counts(source))
    if source["skipped"]:
        yield "           left out: " + ", ".join(f"{count:,} {reason}" for reason, count in source["skipped"].items())
    yield from (f"             {example}" for example in source["skipped_examples"])
    if source["files_not_read"]:
        others = ", ".join(f"{count:,} {suffix}" for suffix, count in source["files_not_read"].items())
        yield f"           files of other kinds, not read: {others}"


def _document_lines(source: dict[str, Any]) -> Iterator[str]:
    yield f"{source['documents']:,} documents, {source['bytes']:,} bytes, {_tokens(source)}"
    yield f"held back: {source['valid']['documents']:,} documents, {source['valid']['tokens']:,} tokens"
    yield _drawn(source)
    if source["repeats"] > WORTH_REPEATING:
        yield (
            f"warning: beyond {WORTH_REPEATING:g} times, text teaches much less than new text would; add text, lower "
            "its weight or train for fewer steps (task.data.max_repeats makes this an error)"
        )
    yield f"longest document: {source['longest']['bytes']:,} bytes, {source['longest']['origin']}"


def _conversation_lines(source: dict[str, Any]) -> Iterator[str]:
    duplicates = f" ({source['duplicates']:,} of them repeated)" if source["duplicates"] else ""
    sequences = f" as {source['sequences']:,} sequences" if source["sequences"] != source["records"] else ""
    yield f"{source['records']:,} conversations{duplicates}{sequences}, {_tokens(source)}"
    yield f"learned: {source['learned']:,} tokens, {source['learned'] / source['tokens']:.1%} of all"
    valid = source["valid"]
    yield f"held back: {valid['documents']:,} sequences, {valid['tokens']:,} tokens, {valid['learned']:,} learned"
    yield f"packed into {source['rows']:,} rows of {source['row_tokens']:,} tokens, {source['padding']:.1%} padding"
    yield _drawn(source)
    cut = f"; {source['cut']:,} cut to fit a row" if source["cut"] else ""
    yield f"longest sequence: {source['longest']['tokens']:,} tokens{cut}, {source['longest']['origin']}"


def _tokens(source: dict[str, Any]) -> str:
    return f"{source['tokens']:,} tokens, {source['bytes_per_token']:.2f} bytes per token"


def _drawn(source: dict[str, Any]) -> str:
    return (
        f"to be drawn: {source['rows_drawn']:,} of {source['rows']:,} rows ({source['repeats']:.2f} times), "
        f"{source['share']:.1%} of training"
    )


def _span_lines(span: dict[str, Any]) -> Iterator[str]:
    text = re.sub(UNPRINTABLE, "·", span["text"] if span["target"] else f"«{span['text']}»")
    for number, line in enumerate(text.split("\n")):
        margin = f"{span['document']:>8} | " if number == 0 else " " * 8 + " | "
        yield from textwrap.wrap(line, 110, initial_indent=margin, subsequent_indent=" " * 8 + " | ") or [margin]
