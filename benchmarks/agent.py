"""Learning by acting, part by part: environments, V-trace, acting, learning, and both side by side.

    python -m benchmarks agent --only 'environment-*' 'train-*'

    environment-NAME   steps of one copy with random actions; Atari beside the bare console
    vtrace-T-B         targets and advantages              beside loops in NumPy and torch
    acting-RECIPE      frames of a rollout of the recipe
    learning-RECIPE    forward, backward and optimizer over a rollout
    train-RECIPE       whole steps, acting in the learner's process    beside one actor process

Gate: the console shows the same frames; V-trace agrees; losses of two steps are the same with and without an actor.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Case, Disagreement, Line, NotHere
from benchmarks.ceiling import arithmetic_rate, read_rate
from benchmarks.pairing import OURS, in_turns, plain, short
from benchmarks.peers import agree_on_losses

ATARI = "ale:Pong"
GAMES = ("catch", "key_door", "cue_memory", ATARI)
VTRACE = ((20, 32), (20, 512), (100, 32))
CATCH, TOY = "catch", "toy"
GATE_STEPS = 2
ONE_ACTOR = "one_actor"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2000, help="of an environment (default: 2000)")


def cases(options: Namespace) -> list[Case]:
    return [
        *(Case(f"environment-{name}", partial(environment, name)) for name in GAMES),
        *(Case(f"vtrace-{steps}-{rows}", partial(v_trace, steps, rows)) for steps, rows in VTRACE),
        *(
            Case(f"{part.__name__}-{recipe}", partial(part, recipe), when_named=recipe == TOY)
            for part in (acting, learning, train)
            for recipe in (CATCH, TOY)
        ),
    ]


# --- environments


def environment(name: str, options: Namespace) -> Line:
    from seqloom.core.errors import ConfigError
    from seqloom.rl.config import AtariConfig, EnvironmentConfig
    from seqloom.rl.environment import make_environment

    atari = AtariConfig(no_ops=0) if name == ATARI else None
    try:
        played = make_environment(EnvironmentConfig(name=name, atari=atari))
    except ConfigError as error:
        raise NotHere(str(error)) from None
    actions = np.random.default_rng(0).integers(len(played.facts.actions), size=options.steps).tolist()

    def play() -> int:
        frame, _ = played.reset(seed=0)
        shown = 0
        for action in actions:
            frame, _, over, cut, _ = played.step(action)
            shown += int(frame[::8, ::8].sum())
            if over or cut:
                frame, _ = played.reset(seed=0)
        return shown

    sides: dict[str, Callable[[], int]] = {OURS: play}
    if name == ATARI and not options.alone:
        sides["console"] = _console(actions)
    shown = {side: each() for side, each in sides.items()}
    if len(set(shown.values())) > 1:
        raise Disagreement(f"frames differ: {shown}; not timed")
    line: Line = {"gate": shown, "outcome": float(shown[OURS])}
    line |= in_turns({side: plain(each) for side, each in sides.items()}, options.repeats, len(actions), warm=True)
    played.close()
    rates = {f"{side}_steps_per_second": short(1 / seconds[1]) for side, seconds in line["seconds"].items()}
    return line | {"figures": rates}


def _console(actions: list[int]) -> Callable[[], int]:
    """The Arcade Learning Environment as it is, four frames for each action."""
    import ale_py
    from ale_py.roms import get_rom_path

    console = ale_py.ALEInterface()
    console.setInt("random_seed", 0)
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(get_rom_path("pong"))
    console.reset_game()
    start, legal = console.cloneState(include_rng=True), list(console.getMinimalActionSet())

    def play() -> int:
        console.restoreState(start)
        shown = 0
        for action in actions:
            for _ in range(4):
                console.act(legal[action])
                if console.game_over():
                    break
            shown += int(console.getScreenRGB()[::8, ::8].sum())
            if console.game_over():
                console.restoreState(start)
        return shown

    return play


# --- V-trace


def v_trace(T: int, B: int, options: Namespace) -> Line:
    from seqloom.rl.vtrace import vtrace

    discounts = 0.99 * (torch.rand(T, B) > 0.05).float()
    given = (0.3 * torch.randn(T, B), torch.randn(T, B), discounts, torch.randn(T + 1, B))
    sides: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {OURS: lambda: vtrace(*given)}
    if not options.alone:
        sides |= {"numpy": lambda: _in_numpy(*given), "torch_loop": lambda: _in_torch(*given)}
    found = {name: torch.stack(tuple(each())) for name, each in sides.items()}
    gaps = {name: float((theirs - found[OURS]).abs().max()) for name, theirs in found.items() if name != OURS}
    if not all(gap < 1e-4 for gap in gaps.values()):
        raise Disagreement(f"targets or advantages differ by {gaps}; not timed")
    line: Line = {
        "gate": {name: short(gap) for name, gap in gaps.items()},
        "outcome": float(found[OURS].abs().mean()),
        **in_turns({name: plain(each) for name, each in sides.items()}, options.repeats),
    }
    least = 4 * (6 * T * B + B) / read_rate()
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "ceiling_seconds": short(least),
        "share_of_ceiling": {name: short(least / seconds) for name, seconds in medians.items()},
    }


def _in_numpy(log_ratios: Tensor, rewards: Tensor, discounts: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Backwards through time as the paper's equation 1 reads in its recursive form."""
    ratio, r, gamma, v = (part.numpy() for part in (log_ratios.exp(), rewards, discounts, values))
    rho = np.minimum(ratio, 1.0)
    targets = np.empty_like(v)
    targets[-1] = v[-1]
    for t in reversed(range(len(r))):
        delta = rho[t] * (r[t] + gamma[t] * v[t + 1] - v[t])
        targets[t] = v[t] + delta + gamma[t] * rho[t] * (targets[t + 1] - v[t + 1])
    advantages = rho * (r + gamma * targets[1:] - v[:-1])
    return torch.from_numpy(targets[:-1]), torch.from_numpy(advantages)


@torch.no_grad()
def _in_torch(log_ratios: Tensor, rewards: Tensor, discounts: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same, a time step at a time."""
    rho = log_ratios.exp().clamp(max=1.0)
    targets = torch.empty_like(values)
    targets[-1] = values[-1]
    for t in reversed(range(len(rewards))):
        delta = rho[t] * (rewards[t] + discounts[t] * values[t + 1] - values[t])
        targets[t] = values[t] + delta + discounts[t] * rho[t] * (targets[t + 1] - values[t + 1])
    return targets[:-1], rho * (rewards + discounts * targets[1:] - values[:-1])


# --- an agent


def acting(recipe: str, options: Namespace) -> Line:
    """Rollouts in this process."""
    from seqloom.rl.rollouts import LocalRollouts, RolloutPlan

    run, task = _run(recipe), _run(recipe).task
    torch.manual_seed(0)
    model = run.model.build()
    plan = RolloutPlan(
        environment=task.environment,
        environments=task.environments,
        group=task.group,
        steps=task.unroll,
        seed=0,
    )
    rollouts, number, frames = LocalRollouts(plan), [0], task.environments * task.unroll

    def act() -> float:
        rollouts.launch(model, number[0])
        number[0] += 1
        return float(rollouts.take().unroll.log_probs.sum())

    outcome = act()
    line = in_turns({OURS: plain(act)}, options.repeats, frames)
    rollouts.close()
    return {"outcome": outcome, **line, **_rates(run, line, 1)}


def learning(recipe: str, options: Namespace) -> Line:
    """The loss of a rollout in hand, its gradients, and the optimizer's step."""
    run = _run(recipe)
    task, model, optimizers = _ready(run)
    batch = task.next_batch(model, 0)
    step = partial(_learn, task, model, optimizers, batch)
    outcome = step()
    line = in_turns({OURS: plain(step)}, options.repeats, run.task.batch * run.task.unroll)
    task.close()
    return {"outcome": outcome, **line, **_rates(run, line, 3)}


def train(recipe: str, options: Namespace) -> Line:
    """Steps as the training loop takes them."""
    run = _run(recipe)
    runs = {OURS: run} if options.alone else {OURS: run, ONE_ACTOR: replace(run, task=replace(run.task, actors=1))}
    opened = {name: _ready(each) for name, each in runs.items()}
    try:
        steps = {name: _stepper(*each) for name, each in opened.items()}
        losses = {name: [step() for _ in range(GATE_STEPS)] for name, step in steps.items()}
        line: Line = {"gate": agree_on_losses(losses, "fp32"), "outcome": losses[OURS][-1]}
        frames = run.task.batch * run.task.unroll
        line |= in_turns({name: plain(step) for name, step in steps.items()}, options.repeats, frames, warm=True)
    finally:
        for task, *_ in opened.values():
            task.close()
    return line | _rates(run, line, 4)


def _run(recipe: str) -> Any:
    from seqloom.systems.attention_agent.recipes import catch

    run = catch()
    if recipe == CATCH:
        return run
    model = replace(run.model, vision_channels=8, key_channels=3, frequencies=2, core_widths=(8,), lstm_width=8)
    return replace(run, model=model, task=replace(run.task, environments=2, group=1, unroll=4))


def _ready(run: Any) -> tuple[Any, Any, Any]:
    from seqloom.train.optimizers import build_optimizers

    torch.manual_seed(0)
    model = run.model.build().train()
    return run.task.build(run, torch.device("cpu")), model, build_optimizers(model, run.train.optimizer)


def _stepper(task: Any, model: Any, optimizers: Any) -> Callable[[], float]:
    number = [0]

    def step() -> float:
        loss = _learn(task, model, optimizers, task.next_batch(model, number[0]))
        task.after_step(model, number[0])
        number[0] += 1
        return loss

    return step


def _learn(task: Any, model: Any, optimizers: Any, batch: list[Any]) -> float:
    total, units = 0.0, 0
    for micro in batch:
        loss = task.loss(model, micro)
        loss.total.backward()
        total, units = total + float(loss.total.detach()), units + loss.units
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= units
    optimizers.step(1.0)
    model.zero_grad()
    return total / units


def _rates(run: Any, line: Line, passes: int) -> Line:
    """Frames per second, and the share of the products that this machine could do: forward passes of a frame."""
    from seqloom.systems.attention_agent.budget import budget

    flops, ceiling = passes * budget(run.model).flops_per_frame, arithmetic_rate("fp32")
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return {
        "figures": {f"{name}_frames_per_second": short(1 / seconds) for name, seconds in medians.items()},
        "ceiling_gflops": short(ceiling / 1e9),
        "share_of_ceiling": {name: short(flops / seconds / ceiling) for name, seconds in medians.items()},
    }
