"""Measuring an agent on whole episodes with fixed seeds: return and length."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqloom.core.config import parse, read_yaml
from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.core.rooms import load
from seqloom.core.seeds import derive, generator
from seqloom.data.config import SourceConfig
from seqloom.rl.atari_scores import human_normalised
from seqloom.rl.config import ATARI, EnvironmentConfig
from seqloom.rl.environment import Facts, make_environment
from seqloom.rl.runner import drawn
from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.config import AgentConfig, AgentTaskConfig, Run, VTraceConfig
from seqloom.systems.attention_agent.model import AttentionAgent
from seqloom.train.state import RUN


class Episode(NamedTuple):
    """
    Attributes:
        ret: sum of unclipped rewards.
        cut: given up before its end.
    """

    ret: float
    length: int
    cut: bool


def measure(
    model: AttentionAgent, task: AgentTaskConfig, seed: int, episodes: int, progress: Progress | None = None
) -> dict[str, float]:
    """Returns of episodes 0 to `episodes` - 1 of a fixed list; the loss is minus their mean.

    Raises:
        ConfigError: the environment cannot be opened.
    """
    done: list[Episode] = []
    while len(done) < episodes:
        numbers = range(len(done), min(len(done) + task.group, episodes))
        done += play_together(model, task, seed, numbers)
        if progress is not None:
            progress("playing episodes", len(done) / episodes)
    returns = torch.tensor([episode.ret for episode in done], dtype=torch.float64)
    found = {
        "loss": -float(returns.mean()),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(correction=0)),
        "length_mean": sum(episode.length for episode in done) / episodes,
        "cut_share": sum(episode.cut for episode in done) / episodes,
        "episodes": episodes,
    }
    name = task.environment.name
    if name.startswith(ATARI):
        normalised = human_normalised(name.removeprefix(ATARI), found["return_mean"])
        found |= {} if normalised is None else {"human_normalised": normalised}
    return found


def checked_facts(config: AgentConfig, environment: EnvironmentConfig) -> Facts:
    """What is known of an environment that a model fits.

    Raises:
        ConfigError: there is no such environment, or its frames or actions are not the model's.
    """
    opened = make_environment(environment)
    facts = opened.facts
    opened.close()
    wanted = {"model.rows": facts.rows, "model.columns": facts.columns, "model.actions": len(facts.actions)}
    given = {"model.rows": config.rows, "model.columns": config.columns, "model.actions": config.actions}
    if wrong := [f"{name} is {given[name]}, must be {size}" for name, size in wanted.items() if given[name] != size]:
        raise ConfigError(f"environment '{environment.name}' does not fit the model: {'; '.join(wrong)}")
    return facts


@torch.no_grad()
def play_together(model: AttentionAgent, task: AgentTaskConfig, seed: int, numbers: range) -> list[Episode]:
    """Play some episodes side by side."""
    environments = [make_environment(task.environment) for _ in numbers]
    draws = [generator(seed, "evaluate", number) for number in numbers]
    frames = [
        environment.reset(seed=derive(seed, "evaluate", number) % 2**31)[0]
        for environment, number in zip(environments, numbers, strict=True)
    ]
    device = model.policy.weight.device
    seen = Seen(
        torch.stack([torch.from_numpy(frame.copy()) for frame in frames]),
        torch.zeros(len(numbers)),
        torch.zeros(len(numbers), dtype=torch.int64),
        torch.ones(len(numbers), dtype=torch.bool),
    )
    state = model.initial_state(len(numbers))
    playing = list(range(len(numbers)))
    returns, done = [0.0] * len(numbers), dict[int, Episode]()
    for length in range(1, task.evaluate_steps + 1):
        logits, state = model.act(Seen(*(part[None].to(device) for part in seen)), state)
        log_p = logits.float().cpu().log_softmax(-1)
        draw = torch.stack([torch.rand((), generator=draws[place]) for place in playing])
        actions = log_p.argmax(-1) if task.evaluate_greedy else drawn(log_p, draw)
        shown, rewards = list[Tensor](), list[float]()
        for place, action in zip(playing, actions.tolist(), strict=True):
            frame, reward, terminated, truncated, _ = environments[place].step(action)
            shown.append(torch.from_numpy(frame.copy()))
            rewards.append(reward)
            returns[place] += reward
            if terminated or truncated or length == task.evaluate_steps:
                done[place] = Episode(returns[place], length, not (terminated or truncated))
        kept = [row for row, place in enumerate(playing) if place not in done]
        playing = [playing[row] for row in kept]
        if not playing:
            break
        rows = torch.tensor(kept)
        state = {name: part[rows.to(part.device)] for name, part in state.items()}
        begins = torch.zeros(len(kept), dtype=torch.bool)
        seen = Seen(torch.stack(shown)[rows], torch.tensor(rewards)[rows], actions[rows], begins)
    for environment in environments:
        environment.close()
    return [done[place] for place in range(len(numbers))]


def evaluate(
    folder: Path,
    sources: tuple[SourceConfig, ...] = (),
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model folder in its run's environment, or in the one named.

    Args:
        sources: at most one, whose path is the name of an environment; without it, the folder must be a run folder.
        limit: episodes to play; None takes as many as the run's evaluations.
    Raises:
        ConfigError: nothing says where to act, or the environment does not fit the model.
        CheckpointError: the folder cannot be used.
    """
    model = load(folder).to(pick_device("auto"))
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN)) if (folder / RUN).exists() else None
    if len(sources) > 1 or (run is None and not sources):
        raise ConfigError(f"{folder}: name one environment to act in with --data NAME, or give a run folder")
    named = EnvironmentConfig(name=sources[0].path) if sources else None
    task = run.task if run else AgentTaskConfig(environment=EnvironmentConfig(name="catch"), vtrace=VTraceConfig())
    task = replace(task, environment=named or task.environment)
    checked_facts(model.config, task.environment)
    return measure(model, task, run.seed if run else 0, limit or task.evaluate_episodes, progress)
