"""Watching a trained agent: whole episodes with what it saw, thought and looked at in each step.

Episodes have the seeds of evaluations, so episode n here is episode n there. Numbers are kept of every step; pictures,
which are large, only of the first steps of all episodes together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqloom.core.config import parse, read_yaml
from seqloom.core.devices import pick_device
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.rooms import load
from seqloom.core.seeds import derive, generator
from seqloom.nn.glimpse import Glimpse
from seqloom.rl.config import EnvironmentConfig
from seqloom.rl.environment import Facts, Frame, make_environment
from seqloom.rl.runner import drawn
from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.attention_facts import StepFacts, mean_facts, shares, step_facts
from seqloom.systems.attention_agent.config import Run
from seqloom.systems.attention_agent.evaluate import checked_facts
from seqloom.systems.attention_agent.model import AgentOutput, AgentState, AttentionAgent
from seqloom.systems.attention_agent.saliency import Saliency, agreement, saliency
from seqloom.train.state import RUN

PICTURES = 2000
"""Steps of which pictures are kept."""
SALIENCY_EVERY, SALIENCY_MOST = 4, 12
"""Steps from one saliency map to the next, and how many there are of an episode at most."""

Maps = np.ndarray[Any, np.dtype[np.float32]]


class Moment(NamedTuple):
    """One step of an episode, T = B = 1.

    Attributes:
        state: before the step.
        reward: what the action brought.
        over: the episode ended with it.
    """

    seen: Seen
    state: AgentState
    output: AgentOutput
    action: int
    reward: float
    over: bool

    @property
    def frame(self) -> Frame:
        frame: Frame = self.seen.frames[0, 0].cpu().numpy()
        return frame

    @property
    def glimpse(self) -> Glimpse | None:
        """Where the queries looked, N first."""
        found = self.output.glimpses
        return None if found is None else Glimpse(*(part[0, 0] for part in found))


class Picture(NamedTuple):
    """What is to be seen of a step.

    Attributes:
        maps: shares of attention, N Y X; likewise those that content or place alone would give. None without attention.
    """

    step: int
    frame: Frame
    maps: Maps | None
    what: Maps | None
    where: Maps | None
    saliency: Saliency | None


@dataclass(kw_only=True)
class Recording:
    """An episode; lists have an entry per step.

    Attributes:
        number: of the episode in the list of the seed's episodes.
        complete: it came to its end, and was not given up.
        agreements: correlation of saliency with attention, of the steps that have both.
    """

    number: int
    complete: bool = False
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    policy_entropy: list[float] = field(default_factory=list)
    facts: list[StepFacts] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)

    @property
    def ret(self) -> float:
        """Sum of rewards."""
        return sum(self.rewards)

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = {
            "episode": self.number,
            "return": self.ret,
            "steps": len(self.actions),
            "complete": self.complete,
            "value_mean": float(np.mean(self.values)),
            "policy_entropy_mean": float(np.mean(self.policy_entropy)),
        }
        if self.facts:
            found["heads"] = mean_facts(self.facts)
        if self.agreements:
            found["saliency_correlation"] = float(np.mean(self.agreements))
        return found


@dataclass(frozen=True, kw_only=True)
class Player:
    """A trained agent and the environment of its run.

    Attributes:
        limit: steps after which an episode is given up.
    """

    model: AttentionAgent
    environment: EnvironmentConfig
    facts: Facts
    seed: int
    limit: int

    @property
    def attends(self) -> bool:
        return self.model.config.core == "attention"


def open_player(folder: Path, seed: int | None = None) -> Player:
    """
    Args:
        seed: of the list of episodes; None takes the run's.
    Raises:
        ConfigError: not a run folder, or the environment cannot be opened here.
        CheckpointError: the folder is damaged or another system's.
    """
    if not (folder / RUN).exists():
        raise ConfigError(f"{folder}: nothing here says what to play; give a run folder (it has a {RUN})")
    model = load(folder)
    if not isinstance(model, AttentionAgent):
        raise CheckpointError(f"{folder}: not an agent but a {type(model).__name__}")
    run = parse(Run, read_yaml(folder / RUN), str(folder / RUN))
    facts = checked_facts(model.config, run.task.environment)
    return Player(
        model=model.to(pick_device("auto")),
        environment=run.task.environment,
        facts=facts,
        seed=run.seed if seed is None else seed,
        limit=run.task.evaluate_steps,
    )


def moments(player: Player, number: int, *, greedy: bool = False) -> Iterator[Moment]:
    """Play an episode, a step at a time."""
    environment = make_environment(player.environment)
    draws = generator(player.seed, "evaluate", number)
    device = player.model.policy.weight.device
    state = AgentState(**player.model.initial_state(1))
    reward, action = 0.0, 0
    try:
        frame, _ = environment.reset(seed=derive(player.seed, "evaluate", number) % 2**31)
        for step in range(player.limit):
            seen = Seen(
                torch.from_numpy(frame.copy())[None, None],
                torch.tensor([[reward]]),
                torch.tensor([[action]]),
                torch.tensor([[step == 0]]),
            )
            seen = Seen(*(part.to(device) for part in seen))
            output = _look(player.model, seen, state)
            log_p = output.logits[0].float().cpu().log_softmax(-1)
            draw = torch.rand((), generator=draws)
            action = int(log_p.argmax() if greedy else drawn(log_p, draw[None]))
            frame, reward, terminated, truncated, _ = environment.step(action)
            over = terminated or truncated
            yield Moment(seen, state, output, action, reward, over)
            if over:
                return
            state = output.state
    finally:
        environment.close()


def record(
    player: Player, number: int, *, greedy: bool = False, pictures: int = PICTURES, with_saliency: bool = False
) -> Recording:
    """Play an episode and keep what is to be shown.

    Args:
        pictures: of how many steps to keep pictures, the first ones.
        with_saliency: also find out, at some steps, where blurring the frame changes the policy.
    """
    found = Recording(number=number)
    for step, moment in enumerate(moments(player, number, greedy=greedy)):
        log_p = moment.output.logits[0, 0].float().log_softmax(-1)
        found.actions.append(moment.action)
        found.rewards.append(moment.reward)
        found.values.append(float(moment.output.values))
        found.policy_entropy.append(-float((log_p.exp() * log_p).sum()))
        found.complete = moment.over
        if moment.glimpse is not None:
            found.facts.append(step_facts(moment.glimpse, player.environment.name, moment.frame))
        if step < pictures:
            turn, rest = divmod(step, SALIENCY_EVERY)
            found.pictures.append(_picture(player, step, moment, with_saliency and not rest and turn < SALIENCY_MOST))
            shown = found.pictures[-1]
            if shown.saliency is not None and shown.maps is not None:
                found.agreements.append(agreement(shown.saliency.policy, torch.from_numpy(shown.maps)))
    return found


def play(
    folder: str | Path, episodes: int = 1, *, seed: int | None = None, greedy: bool = False, with_saliency: bool = False
) -> list[Recording]:
    """Episodes of a trained run.

    Raises:
        ConfigError, CheckpointError: see `open_player`.
    """
    player = open_player(Path(folder), seed)
    return list(recordings(player, episodes, greedy=greedy, with_saliency=with_saliency))


def recordings(
    player: Player, episodes: int, *, greedy: bool = False, with_saliency: bool = False
) -> Iterator[Recording]:
    """Episodes 0, 1, ..., with pictures of the first steps of all together."""
    left = PICTURES
    for number in range(episodes):
        found = record(player, number, greedy=greedy, pictures=left, with_saliency=with_saliency)
        left -= len(found.pictures)
        yield found


@torch.no_grad()
def _look(model: AttentionAgent, seen: Seen, state: AgentState) -> AgentOutput:
    output: AgentOutput = model(seen, state, look=True)
    return output


def _picture(player: Player, step: int, moment: Moment, with_saliency: bool) -> Picture:
    found = saliency(player.model, moment.seen, moment.state) if with_saliency else None
    if (glimpse := moment.glimpse) is None:
        return Picture(step, moment.frame, None, None, None, found)
    what, where = (part.flatten(-2).softmax(-1).view_as(part) for part in (glimpse.logits_what, glimpse.logits_where))
    return Picture(step, moment.frame, _array(shares(glimpse.maps)), _array(what), _array(where), found)


def _array(part: Tensor) -> Maps:
    array: Maps = part.float().cpu().numpy()
    return array
