"""`report.html`: a run on one static page that needs nothing beside itself.

In the order in which one asks: what it is and how far it came, how the loss went and at which speed, what the inside
looked like, on which data, with which settings. Made anew at every save, and by `seqloom report`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.core import page
from seqloom.core.charts import HeatMap, Line, LineChart, known, smooth
from seqloom.core.checkpoint import commit
from seqloom.core.errors import ConfigError
from seqloom.core.page import Html
from seqloom.core.readable import duration, short, size, words
from seqloom.train.history import History, Over, dotted, number, read_history

REPORT = "report.html"

SMOOTHED_FROM = 30  # points; fewer are read better as they are
LINES = 8  # most lines in one chart; more become strips
CELLS = 6000  # most cells of a heat map
SAMPLES = 5

MEANING = {
    "output_norm": "L2 norm of an output vector, by linear layer",
    "output_rms": "Root mean square of a layer's output",
    "input_norm": "L2 norm of an input vector, by linear layer",
    "input_gradient_norm": "Gradient at a layer's input, by linear layer",
    "weight_norm": "L2 norm of weights, by matrix",
    "weight_gradient_norm": "L2 norm of the gradient, by matrix",
    "gradient_norm": "L2 norm of the gradient, by layer",
    "update_ratio": "Update over weights (norms), by layer",
    "zero_gradients": "Share of gradients that are exactly zero, by layer",
    "logit_max": "Largest attention logit",
    "entropy": "Entropy of attention (nats)",
    "one_hot": "Share of attention rows with one key above 0.99",
    "max_vio": "Router balance: largest expert load over the mean (MaxVio)",
}
"""What the monitors measure; in this order on the page."""
TITLES = {"share": "share of training", "repeats": "times seen"}
"""Of what is counted in a source of data, where the name alone does not say it."""
COUNTS = ("bytes", "characters", "episodes", "utterances", "words")
"""How much was measured, not how well."""
FURTHER = ("bits_per_byte", "wer", "cer", "return_mean")
"""What is looked at beside the loss, where it was measured."""
SHARES = ("zero_gradients", "one_hot")
FOLDED = ("output_rms", "input_norm", "weight_norm", "weight_gradient_norm", "zero_gradients", "one_hot")


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        out: the file; RUN/report.html by default.
    Raises:
        ConfigError: not a run folder, or the file cannot be written.
        CheckpointError: the log or another file of the run is damaged.
    """
    out = out or folder / REPORT
    write_page(out, report(read_history(folder)))
    return out


def keep_report(folder: Path, tell: Callable[[str], None]) -> None:
    """Write the report while the run goes on; trouble with it is told and stops nothing."""
    try:
        write_report(folder)
    except Exception as error:
        tell(f"{folder / REPORT} was not written: {error}")


def write_page(path: Path, html: Html) -> None:
    """Write a page whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        commit.write_file(path, html.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def report(history: History) -> Html:
    """The page."""
    title = f"{history.name} · {_recipe(history)}"
    body = [
        f"<h1>{page.text(history.name)}</h1>",
        f'<p class="about">{page.text(_about(history))}</p>',
        page.tiles(headline(history)),
        page.section("Loss", page.choice("loss", losses(history))),
        page.section("Course", page.grid(page.figure(chart) for chart in course(history))),
        *_inside(history),
        *_samples(history),
        *_data(history),
        *_settings(history),
    ]
    return page.page(title, body)


def headline(history: History) -> dict[str, str]:
    """The figures that one looks for first; those that the run does not have are left out."""
    unit = history.unit or "units"
    rates = known(history.points("train", f"{unit}_per_second"))
    wanted = f" of {history.steps_wanted:,}" if history.steps_wanted else ""
    figures = {
        "steps": f"{history.steps_done:,}{wanted}",
        "validation loss": _shown(history.last("valid", "loss"), 4),
        "training loss": _shown(history.last("train", "loss"), 4),
        **{words(name): _shown(history.last("valid", name), 4) for name in FURTHER},
        "parameters": _shown(history.machine.get("parameters"), 4),
        unit: _shown(history.last("train", unit), 4),
        "time": _shown(history.last("train", "seconds"), form=duration),
        f"{unit} per second": _shown(float(np.median(rates[:, 1])) if len(rates) else None),
        "peak memory": _shown(history.last("train", "memory_bytes"), form=size),
    }
    return {name: value for name, value in figures.items() if value}


def losses(history: History) -> dict[str, LineChart]:
    """The loss in versions that differ in their horizontal axis."""

    def chart(x: str, over: Over = "step", log_x: bool = False) -> LineChart:
        return LineChart(
            title="Loss", x=x, y=_unit_of(history, "loss"), lines=_lines(history, "loss", over), log_x=log_x
        )

    versions = {"by step": chart("step"), "by step, logarithmic": chart("step", log_x=True)}
    if history.unit:
        versions[f"by {history.unit}"] = chart(history.unit, "units")
    return versions


def course(history: History) -> list[LineChart]:
    """Learning rate, gradient norm, speed, memory, and whatever else the task measures."""
    unit = history.unit or "units"
    memory = history.points("train", "memory_bytes") / (1, 1e9)
    charts = [
        _chart(history, "lr", "Learning rate", ""),
        _chart(history, "grad_norm", "Gradient norm", "before clipping", log_y=True),
        _chart(history, f"{unit}_per_second", "Throughput", f"{unit} per second"),
        LineChart(title="Peak memory", x="step", y="GB", lines=[Line(name="memory", points=memory)]),
    ]
    plain = {"loss", "objective", "lr", "grad_norm", unit, f"{unit}_per_second", "seconds", "memory_bytes", *COUNTS}
    further = dict.fromkeys([*history.measures("train"), *history.measures("valid")])
    charts += [_chart(history, name, words(name).capitalize(), "") for name in further if name not in plain]
    return [chart for chart in charts if any(len(line.points) for line in chart.lines)]


def inside(history: History) -> dict[str, LineChart | HeatMap]:
    """What the monitors measured, by quantity: lines where they are few, else strips."""
    names: dict[str, list[str]] = {quantity: [] for quantity in MEANING}
    modules: dict[str, int] = {}
    for name in history.measures("monitor"):
        module, _, quantity = name.rpartition(".")
        modules.setdefault(module, len(modules))
        names.setdefault(quantity, []).append(name)
    for found in names.values():  # gradients are seen from the last layer to the first
        found.sort(key=lambda name: modules[name.rpartition(".")[0]])
    return {quantity: _of_quantity(history, quantity, found) for quantity, found in names.items() if found}


def report_charts(history: History) -> list[LineChart | HeatMap]:
    """The charts of the page in their order, for a picture."""
    versions = list(losses(history).values())
    return [*versions[:2], *course(history), *inside(history).values()]


def _of_quantity(history: History, quantity: str, names: list[str]) -> LineChart | HeatMap:
    title = MEANING.get(quantity, words(quantity).capitalize())
    modules = [name.rpartition(".")[0] for name in names]
    if len(names) <= LINES:
        lines = [
            Line(name=module, points=history.points("monitor", name), colour=colour)
            for colour, (module, name) in enumerate(zip(modules, names, strict=True))
        ]
        return LineChart(title=title, x="step", y="", lines=lines)
    records = history.of("monitor")
    count = min(len(records), max(2, CELLS // len(names)))
    chosen = [records[place * (len(records) - 1) // max(1, count - 1)] for place in range(count)]
    return HeatMap(
        title=title,
        x="step",
        columns=[record["step"] for record in chosen],
        rows={module: [number(r.get(name)) for r in chosen] for module, name in zip(modules, names, strict=True)},
        scale="share" if quantity in SHARES else "relative",
    )


def _chart(history: History, name: str, title: str, y: str, log_y: bool = False) -> LineChart:
    lines = _lines(history, name)
    positive = all((known(line.points)[:, 1] > 0).all() for line in lines)
    return LineChart(title=title, x="step", y=y, lines=lines, log_y=log_y and positive)


def _lines(history: History, name: str, over: Over = "step") -> list[Line]:
    """A measure in training, smoothed when there is much of it, and in validation."""
    train, valid = history.points("train", name, over), history.points("valid", name, over)
    lines = []
    if len(train) >= SMOOTHED_FROM and name != "lr":
        lines += [
            Line(name="training", points=train, faint=True),
            Line(name="training, smoothed", points=smooth(train)),
        ]
    elif len(train):
        lines.append(Line(name="training", points=train))
    if len(valid):
        lines.append(Line(name="validation", points=valid, colour=1, dots=True))
    return lines


def _inside(history: History) -> Iterator[Html]:
    charts = inside(history)
    if not charts:
        return
    yield "<section><h2>Inside the model</h2>"
    lines = [chart for chart in charts.values() if isinstance(chart, LineChart)]
    yield page.grid(page.figure(chart) for chart in lines)
    yield "</section>"
    for quantity, chart in charts.items():
        if isinstance(chart, HeatMap):
            strips = page.strips(chart), page.scale_key(chart.scale)
            yield page.section(chart.title, *strips, open_=quantity not in FOLDED)


def _samples(history: History) -> Iterator[Html]:
    if samples := history.of("sample"):
        last = max(sample["step"] for sample in samples)
        newest = [sample for sample in samples if sample["step"] == last][-SAMPLES:]
        blocks = (
            page.marked_block([(True, sample.get("prompt", "")), (False, sample.get("text", ""))]) for sample in newest
        )
        yield page.section(f"Written after step {last:,}", *blocks)


def _data(history: History) -> Iterator[Html]:
    data = dict(history.data)
    if not data:
        return
    sources, example = data.pop("sources", None), data.pop("example", None)
    parts = []
    if _are_mappings(sources):
        measured = dict.fromkeys(n for source in sources for n, value in source.items() if number(value) is not None)
        rows = [[source.get("source", ""), *(_cell(name, source.get(name)) for name in measured)] for source in sources]
        parts.append(page.table("Sources", ["source", *(TITLES.get(n, words(n)) for n in measured)], rows))
        skipped = [
            (str(source.get("source", "")), _pairs(source.get("skipped")))
            for source in sources
            if source.get("skipped")
        ]
        parts += [f"<p>{page.text(f'Left out of {name}: {what}')}</p>" for name, what in skipped]
    flat = [(path, _cell(path, value)) for path, value in dotted(data)]
    parts.append(page.table("Further facts of the data", ["fact", "value"], flat) if flat else "")
    if _are_mappings(example):
        parts.append("<p>The first training row; what is not learned is marked:</p>")
        parts.append(page.marked_block([(not span.get("target"), span.get("text", "")) for span in example]))
    yield page.section("Data", *parts)


def _settings(history: History) -> Iterator[Html]:
    formats = Counter(str(value) for value in history.formats.values())
    facts = {**history.machine, **{f"modules in {name}": count for name, count in formats.items()}}
    parts = []
    if facts:
        parts.append(
            page.table("Machine and number formats", ["fact", "value"], [(words(k), v) for k, v in facts.items()])
        )
    parts.append(page.block(history.settings_text))
    yield page.section("Settings and machine", *parts, open_=False)


def _about(history: History) -> str:
    done = history.steps_wanted is not None and history.steps_done >= history.steps_wanted
    state = "finished" if done else f"after step {history.steps_done:,}" if history.steps_done else "not begun"
    where = [str(history.machine[name]) for name in ("machine", "device") if name in history.machine]
    when = [f"last record {history.updated:%Y-%m-%d %H:%M}"] if history.updated else []
    return " · ".join([_recipe(history), state, *where, *when])


def _recipe(history: History) -> str:
    return "/".join(str(history.settings.get(name, "?")) for name in ("system", "name"))


def _unit_of(history: History, measure: str) -> str:
    singular = history.unit.removesuffix("s") if history.unit else None
    return f"per {singular}" if measure == "loss" and singular else ""


def _shown(value: Any, digits: int = 3, form: Callable[[float], str] | None = None) -> str:
    figure = number(value)
    if figure is None:
        return ""
    return form(figure) if form else short(figure, digits)


def _cell(name: str, value: Any) -> str:
    if name == "share" and number(value) is not None:
        return f"{value:.1%}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else "–" if value is None else str(value)


def _pairs(value: Any) -> str:
    return ", ".join(f"{name} {_cell(name, part)}" for name, part in dotted(value))


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)
