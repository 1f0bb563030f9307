"""`seqloom report`: a run on one static page, and its charts as a picture."""

from pathlib import Path

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json


def main(arguments: list[str]) -> None:
    parse("report", report, arguments)


def report(
    run: tyro.conf.Positional[Path], *, out: Path | None = None, png: Path | None = None, as_json: JsonFlag = False
) -> None:
    """A page with everything a run tells: curves, what was measured inside the model, data, settings.

    The page needs no network and runs no scripts. Training writes it too, at every save; runs in progress and runs that
    were interrupted are shown as far as they came.

    Example: seqloom report runs/demo --png runs/demo/report.png

    Args:
        run: a run folder.
        out: the page; RUN/report.html by default.
        png: also draw all charts into this picture (needs the extra report).
    """
    from seqloom.core.png import write_png
    from seqloom.train.history import read_history
    from seqloom.train.report_page import REPORT, headline, report, report_charts, write_page

    history = read_history(run)
    out = out or run / REPORT
    write_page(out, report(history))
    if png is not None:
        write_png(report_charts(history), png, history.name)
    figures = headline(history)
    if as_json:
        last = {kind: history.of(kind)[-1] for kind in ("train", "valid") if history.of(kind)}
        print_json({"run": str(run), "page": str(out), "png": str(png) if png else None, **last})
        return
    print("\n".join(f"{name:20} {value}" for name, value in figures.items()))
    print(f"{out}" + (f"\n{png}" if png else ""))
