"""A game's report on one page: returns, what the agent thought and looked at over time, and stills with its attention.

Needs nothing beside itself. In the order in which one asks: how well it plays, where each query looks and whether by
what or by where, and what that looks like on the frames.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqloom.core import page
from seqloom.core.charts import Line, LineChart
from seqloom.core.page import Html
from seqloom.core.readable import short
from seqloom.systems.attention_agent.attention_facts import mean_facts, shares
from seqloom.systems.attention_agent.overlay import colour_of
from seqloom.systems.attention_agent.pixels import defined, drawing, layer, layers
from seqloom.systems.attention_agent.play import Picture, Player, Recording

STILLS = 12
EPISODES = 4
"""Most stills of an episode, and most episodes of which there are any."""
SALIENT = (150, 160, 255)


def play_page(name: str, player: Player, recordings: Sequence[Recording]) -> Html:
    """The page.

    Args:
        name: of the run.
    """
    title = f"{name} plays {player.environment.name}"
    config = player.model.config
    queries = f", {config.queries} queries on {config.image[0]} x {config.image[1]} places" if player.attends else ""
    about = f"core {config.core}{queries}; episodes of seed {player.seed}"
    body = [
        f"<h1>{page.text(title)}</h1>",
        f'<p class="about">{page.text(about)}</p>',
        page.tiles(headline(player, recordings)),
        page.section("Episodes", _episodes(recordings)),
        *_heads(recordings),
        *(_timelines(recording) for recording in recordings[:EPISODES]),
        *(_stills(recording, player) for recording in recordings[:EPISODES]),
    ]
    return page.page(title, body)


def headline(player: Player, recordings: Sequence[Recording]) -> dict[str, str]:
    """The figures that one looks for first."""
    returns = [recording.ret for recording in recordings]
    agreements = [value for recording in recordings for value in recording.agreements]
    figures = {
        "episodes": str(len(returns)),
        "mean return": short(float(np.mean(returns)), 4),
        "best possible": short(player.facts.best, 4) if player.facts.best is not None else "",
        "mean length": short(float(np.mean([len(recording.actions) for recording in recordings])), 4),
        "saliency and attention correlate": f"{np.mean(agreements):.2f}" if agreements else "",
    }
    return {name: value for name, value in figures.items() if value}


def _episodes(recordings: Sequence[Recording]) -> Html:
    rows = [
        (
            f"episode {recording.number}",
            short(recording.ret, 4),
            len(recording.actions),
            "came to its end" if recording.complete else "was given up",
        )
        for recording in recordings
    ]
    chart = LineChart(
        title="Return",
        x="episode",
        y="sum of rewards",
        lines=[Line(name="return", points=[(recording.number, recording.ret) for recording in recordings], dots=True)],
    )
    table = page.table("Episodes", ("", "return", "steps", "end"), rows)
    return table if len(recordings) == 1 else page.grid([page.figure(chart), table])


def _heads(recordings: Sequence[Recording]) -> list[Html]:
    """Means over all steps of all episodes."""
    heads = mean_facts([facts for recording in recordings for facts in recording.facts])
    if not heads:
        return []
    rows = [(f"query {n + 1}", *(short(value) for value in head.values())) for n, head in enumerate(heads)]
    told = {
        "entropy": "entropy (nats)",
        "what_where": "log what/where",
        "what_share": "steps led by what",
    }
    headings = [told.get(name, name.replace("_", " ")) for name in heads[0]]
    note = (
        "log what/where: above 0, what is at a place moves the logits more than where it is. near: share of attention "
        "close to an object, beside that of a uniform map."
    )
    return [page.section("Queries", page.table("Queries", ("", *headings), rows), f"<p>{page.text(note)}</p>")]


def _timelines(recording: Recording) -> Html:
    charts = [_chart("Value", "expected return", {"value": recording.values})]
    charts.append(_chart("Policy", "entropy in nats", {"entropy": recording.policy_entropy}))
    if recording.facts:
        for title, y, part in (
            ("Attention, spread", "entropy in nats", "entropy"),
            ("Led by what or where", "log of variances' ratio", "what_where"),
        ):
            by_query = np.array([getattr(facts, part) for facts in recording.facts]).T.tolist()
            charts.append(_chart(title, y, {f"query {n + 1}": values for n, values in enumerate(by_query)}))
        for name in sorted({name for facts in recording.facts for name in facts.near}):
            near = [_near(facts.near.get(name)) for facts in recording.facts]
            uniform = [facts.uniform.get(name) for facts in recording.facts]
            charts.append(_chart(f"Near the {name}", "share of attention", {"all queries": near, "uniform": uniform}))
    return page.section(f"Episode {recording.number} over time", page.grid(page.figure(chart) for chart in charts))


def _near(by_query: list[float] | None) -> float | None:
    return None if by_query is None else float(np.mean(by_query))


def _chart(title: str, y: str, series: dict[str, Any]) -> LineChart:
    lines = [
        Line(name=name, points=list(enumerate(values)), colour=colour)
        for colour, (name, values) in enumerate(series.items())
    ]
    return LineChart(title=title, x="step", y=y, lines=lines)


def _stills(recording: Recording, player: Player) -> Html:
    chosen = _chosen(recording.pictures)
    if not chosen:
        return ""
    parts = [_still(recording, picture, player) for picture in chosen]
    queries = player.model.config.queries if player.attends else 0
    legend = "".join(
        f'<li style="--c:#{r:02x}{g:02x}{b:02x}">query {n + 1}</li>'
        for n, (r, g, b) in enumerate(map(colour_of, range(queries)))
    )
    if any(picture.saliency is not None for picture in chosen):
        legend += f'<li style="--c:#{SALIENT[0]:02x}{SALIENT[1]:02x}{SALIENT[2]:02x}">saliency</li>'
    return page.section(f"Episode {recording.number}, stills", f'<ul class="legend">{legend}</ul>', *parts)


def _chosen(pictures: Sequence[Picture]) -> list[Picture]:
    """Those with saliency if there are any, else some, evenly spread."""
    salient = [picture for picture in pictures if picture.saliency is not None]
    found = salient or list(pictures)
    count = min(STILLS, len(found))
    return [found[place * (len(found) - 1) // max(1, count - 1)] for place in range(count)]


def _still(recording: Recording, picture: Picture, player: Player) -> Html:
    name = f"f{recording.number}-{picture.step}"
    parts = []

    def draw(caption: str, *over: Html) -> None:
        label = page.text(f"step {picture.step}, {caption}")
        image = drawing(name, picture.frame, label, *over)
        parts.append(f"<figure><figcaption><span>{page.text(caption)}</span></figcaption>{image}</figure>")

    if picture.maps is None:
        draw("frame")
    else:
        draw("all queries", *layers(picture.maps, picture.frame))
        for n, each in enumerate(picture.maps):
            ratio = recording.facts[picture.step].what_where[n]
            draw(
                f"query {n + 1}, {'what' if ratio > 0 else 'where'} {ratio:+.1f}",
                layer(each, picture.frame, colour_of(n)),
            )
    if picture.saliency is not None:
        draw("saliency", layer(shares(picture.saliency.policy).numpy(), picture.frame, SALIENT))
    action = player.facts.actions[recording.actions[picture.step]]
    said = (
        f"step {picture.step}: {action}, reward {short(recording.rewards[picture.step])}, "
        f"value {short(recording.values[picture.step])}"
    )
    style = "display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:10px"
    return f'{defined(picture.frame, name)}<p>{page.text(said)}</p><div style="{style}">{"".join(parts)}</div>'
