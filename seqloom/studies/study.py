"""What every claim-as-a-program shares: findings as text, as JSON and as one static page.

A study is a file of this room with two names:

    Options                                     a config; its fields are the study's command line
    study(options, folder, watch) -> Findings   runs what is missing in its folder, and judges what is there

It may be stopped and started again at any time. A claim that did not reproduce is shown like one that did, one that
was not measured says why, and nothing is averaged away: the JSON holds what the tables were made from.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from seqloom.core import page
from seqloom.core.charts import LineChart
from seqloom.core.checkpoint import commit
from seqloom.core.errors import CheckpointError

JSON, PAGE = "findings.json", "findings.html"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures side by side; the first column names the rows."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper, held against what was measured here.

    Attributes:
        name: short, for references.
        paper: the figure there.
        here: the figure here, or why there is none.
        holds: None if it was not measured.
    """

    name: str
    says: str
    paper: str
    here: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reproduced", False: "not reproduced", None: "not measured"}[self.holds]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a study.

    Attributes:
        title: what was asked.
        setting: under which conditions, name -> value.
        remarks: what a reader must know to judge the figures, in whole sentences.
        data: everything that the tables were made from, as plain data.
    """

    title: str
    source: str
    setting: dict[str, str]
    tables: Sequence[Table]
    claims: Sequence[Claim]
    remarks: Sequence[str]
    charts: Sequence[LineChart] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Plain data, as it is stored."""
        return {
            "title": self.title,
            "source": self.source,
            "setting": self.setting,
            "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in self.claims],
            "remarks": list(self.remarks),
            "tables": [asdict(table) for table in self.tables],
            "data": self.data,
        }

    def as_text(self) -> str:
        """For a terminal."""
        parts = [self.title, self.source, _aligned([("", *pair) for pair in self.setting.items()])]
        for table in self.tables:
            parts += [f"\n{table.title}", _aligned([table.headings, *table.rows])]
            parts += [table.note] if table.note else []
        for claim in self.claims:
            parts += [
                f"\n{claim.name}: {claim.verdict}",
                claim.says,
                f"  paper  {claim.paper}",
                f"  here   {claim.here}",
            ]
        return "\n".join([*parts, "", *self.remarks])

    def as_page(self) -> str:
        """One HTML file that needs nothing beside itself."""
        body = [
            f"<h1>{page.text(self.title)}</h1>",
            f'<p class="about">{page.text(self.source)}</p>',
            page.tiles({claim.name: claim.verdict for claim in self.claims}),
            page.section("Remarks", *(f"<p>{page.text(remark)}</p>" for remark in self.remarks)),
        ]
        rows = [(claim.name, claim.says, claim.paper, claim.here, claim.verdict) for claim in self.claims]
        verdicts = Table(title="Claims", headings=("", "claim", "paper", "here", "verdict"), rows=rows)
        for table in [verdicts, *self.tables]:
            note = [f"<p>{page.text(table.note)}</p>"] if table.note else []
            body.append(page.section(table.title, page.table(table.title, table.headings, table.rows), *note))
        if self.charts:
            body.append(page.section("Curves", page.grid(page.figure(chart) for chart in self.charts)))
        body.append(page.section("Setting", page.table("Setting", ("", ""), list(self.setting.items()))))
        return page.page(self.title, body)

    def write(self, folder: Path) -> None:
        """Leave `findings.json` and `findings.html` in a folder.

        Raises:
            CheckpointError: they cannot be written.
        """
        texts = {JSON: json.dumps(self.as_data(), indent=1, ensure_ascii=False) + "\n", PAGE: self.as_page()}
        commit.make_folder(folder)
        for name, text in texts.items():
            try:
                commit.write_file(folder / name, text.encode())
            except OSError as error:
                raise CheckpointError(f"{folder / name}: cannot be written: {error.strerror}") from error


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, cells to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
