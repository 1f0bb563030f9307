"""What a user should see of the data before step 1: how much of what, what was left out, and one row of it.

The row is shown as the model gets it, with document borders and the tokens that carry no target. The report is plain
data, stored with the run; `report_lines` is the same for a terminal.
"""

import platform
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from seqloom.data.encode import Store
from seqloom.data.mixture import Mixture
from seqloom.data.rows import NO_DOCUMENT, NO_TARGET, Rows, RowSource
from seqloom.data.sources import Source
from seqloom.data.tokenizer import TextTokenizer

UNPRINTABLE = r"[^\n\t\x20-\x7e\xa0-\U0010ffff]"


def data_report(
    sources: Sequence[Source],
    stores: Sequence[Store],
    tokenizer: TextTokenizer,
    mixture: Mixture,
    rows_total: int,
    train: RowSource,
) -> dict[str, Any]:
    """Describe prepared data.

    Args:
        rows_total: training rows the run will draw.
    """
    drawn = mixture.drawn(rows_total)
    return {
        "tokenizer": {"entries": tokenizer.size, "sha256": tokenizer.digest},
        "rows": rows_total,
        "sources": [_source(*parts, rows_total) for parts in zip(sources, stores, mixture.rows, drawn, strict=True)],
        "example": _example(train.rows([0]), tokenizer),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of plain text."""
    lines = [f"tokenizer  {report['tokenizer']['entries']:,} entries, sha256 {report['tokenizer']['sha256'][:12]}"]
    for source in report["sources"]:
        lines += _source_lines(source)
    lines.append("first training row (tokens without a target between « and »):")
    for span in report["example"]:
        lines += _span_lines(span)
    return lines


def _source(source: Source, store: Store, rows: int, drawn: int, rows_total: int) -> dict[str, Any]:
    tokens, n_bytes = store.train.tokens + store.valid.tokens, store.train.n_bytes + store.valid.n_bytes
    return {
        "source": source.name,
        **({"python": platform.python_version()} if source.built_in else {}),
        "list_sha256": source.list_digest,
        "files": len(source.files),
        "files_not_read": dict(source.not_read),
        "bytes": n_bytes,
        "tokens": tokens,
        "bytes_per_token": n_bytes / tokens,
        "valid": {"documents": store.valid.documents, "tokens": store.valid.tokens, "bytes": store.valid.n_bytes},
        "rows": rows,
        "rows_drawn": drawn,
        "share": drawn / rows_total,
        "repeats": drawn / rows,
        **store.facts,
    }


def _example(rows: Rows, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """A row as spans of equal document and equal answer to whether its tokens have a target."""
    columns = [column[0].tolist() for column in rows]
    cells = [cell for cell in zip(*columns, strict=True) if cell[2] != NO_DOCUMENT]
    spans = groupby(cells, key=lambda cell: (cell[2], cell[1] != NO_TARGET))
    return [
        {
            "document": document,
            "target": target,
            "text": tokenizer.decode([token for token, _, _ in span], specials=True),
        }
        for (document, target), span in spans
    ]


def _source_lines(source: dict[str, Any]) -> Iterator[str]:
    python = f", Python {source['python']}" if "python" in source else ""
    yield f"source     {source['source']} ({source['files']:,} files{python}, list sha256 {source['list_sha256'][:12]})"
    yield (
        f"           {source['documents']:,} documents, {source['bytes']:,} bytes, {source['tokens']:,} tokens, "
        f"{source['bytes_per_token']:.2f} bytes per token"
    )
    valid, longest = source["valid"], source["longest"]
    yield f"           held back: {valid['documents']:,} documents, {valid['tokens']:,} tokens"
    yield (
        f"           to be drawn: {source['rows_drawn']:,} of {source['rows']:,} rows ({source['repeats']:.2f} times), "
        f"{source['share']:.1%} of training"
    )
    yield f"           longest document: {longest['bytes']:,} bytes, {longest['origin']}"
    if source["skipped"]:
        yield "           left out: " + ", ".join(f"{count:,} {reason}" for reason, count in source["skipped"].items())
    yield from (f"             {example}" for example in source["skipped_examples"])
    if source["files_not_read"]:
        others = ", ".join(f"{count:,} {suffix}" for suffix, count in source["files_not_read"].items())
        yield f"           files of other kinds, not read: {others}"


def _span_lines(span: dict[str, Any]) -> Iterator[str]:
    text = re.sub(UNPRINTABLE, "·", span["text"] if span["target"] else f"«{span['text']}»")
    for number, line in enumerate(text.split("\n")):
        margin = f"{span['document']:>8} | " if number == 0 else " " * 8 + " | "
        yield from textwrap.wrap(line, 110, initial_indent=margin, subsequent_indent=" " * 8 + " | ") or [margin]
