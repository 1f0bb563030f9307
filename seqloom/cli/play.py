"""`seqloom play`: episodes of a trained agent, as numbers, as a film with its attention, and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core.errors import ConfigError

if TYPE_CHECKING:
    from seqloom.systems.attention_agent.play import Player, Recording


def main(arguments: list[str]) -> None:
    parse("play", play, arguments)


def play(
    run: tyro.conf.Positional[Path],
    *,
    episodes: int = 1,
    seed: int | None = None,
    greedy: bool = False,
    attention: bool = False,
    saliency: bool = False,
    video: Path | None = None,
    page: Path | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Play episodes with a trained agent, in the environment of its run.

    Example: seqloom play runs/catch --video catch.gif --attention

    Example: seqloom play runs/pong --episodes 4 --saliency --page pong.html

    Args:
        run: a run folder of attention_agent.
        episodes: how many; they are those that evaluations begin with.
        seed: of another list of episodes.
        greedy: take the likeliest action instead of drawing one.
        attention: tell where each query looks, and show it in the film.
        saliency: at some steps, also blur patches of the frame and see where that changes the policy.
        video: a film of all episodes: FILE.gif (needs the extra rl), or FILE.png for an animated PNG.
        page: a report with returns, timelines and stills in one HTML file.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes: {episodes} is not allowed; it must be a whole number from 1")
    from seqloom.systems.attention_agent.play import open_player
    from seqloom.systems.attention_agent.video import check_path

    if video is not None:
        check_path(video)
    player = open_player(run, seed)
    if attention and not player.attends:
        raise ConfigError(f"--attention: the agent of {run} has none (model.core is '{player.model.config.core}')")
    found = _played(player, episodes, greedy, saliency)
    files = _write(run, player, found, attention, video, page)
    summaries = [recording.summary() for recording in found]
    if as_json:
        print_json({"run": str(run), "environment": player.environment.name, "episodes": summaries, **files})
        return
    for summary in summaries:
        print("\n".join(_lines(summary, attention)))
    print(f"mean return of {episodes}: {sum(recording.ret for recording in found) / episodes:.4g}")
    print("\n".join(files.values()), end="\n" if files else "")


def _played(player: "Player", episodes: int, greedy: bool, saliency: bool) -> "list[Recording]":
    from rich.console import Console

    from seqloom.cli.display import Display
    from seqloom.systems.attention_agent.play import recordings

    found = []
    with Display(Console(stderr=True)) as display:
        for recording in recordings(player, episodes, greedy=greedy, with_saliency=saliency):
            found.append(recording)
            display.on_prepare("playing episodes", len(found) / episodes)
    return found


def _write(
    run: Path, player: "Player", found: "list[Recording]", attention: bool, video: Path | None, page: Path | None
) -> dict[str, str]:
    """The files that were asked for, by kind."""
    files = {}
    if video is not None:
        from seqloom.systems.attention_agent import overlay
        from seqloom.systems.attention_agent.video import write_film

        write_film((picture for recording in found for picture in overlay.video(recording, attention)), video)
        files["video"] = str(video)
    if page is not None:
        from seqloom.systems.attention_agent.play_page import play_page
        from seqloom.train.report_page import write_page

        write_page(page, play_page(run.resolve().name, player, found))
        files["page"] = str(page)
    return files


def _lines(summary: dict[str, Any], attention: bool) -> list[str]:
    end = "" if summary["complete"] else ", given up"
    lines = [f"episode {summary['episode']}: return {summary['return']:g} in {summary['steps']} steps{end}"]
    for number, head in enumerate(summary.get("heads", []) if attention else [], 1):
        facts = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in head.items())
        lines.append(f"  query {number}: {facts}")
    if "saliency_correlation" in summary:
        lines.append(f"  saliency correlates with attention: {summary['saliency_correlation']:.2f}")
    return lines
