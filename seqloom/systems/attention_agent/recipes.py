"""Complete runs by name; a variant calls its parent and replaces fields."""

from collections.abc import Callable
from dataclasses import replace

from seqloom.numerics.precision import PrecisionConfig
from seqloom.rl.config import EnvironmentConfig
from seqloom.systems.attention_agent.config import (
    AgentConfig,
    AgentTaskConfig,
    ConvConfig,
    PpoConfig,
    Run,
    VTraceConfig,
)
from seqloom.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


def catch() -> Run:
    """A small attention agent learns to catch falling balls with V-trace, in minutes on one core."""
    return Run(
        name="catch",
        model=AgentConfig(
            rows=24,
            columns=24,
            actions=3,
            convolutions=(ConvConfig(channels=8, kernel=4, stride=2), ConvConfig(channels=16, kernel=4, stride=2)),
            vision_channels=24,
            query_width=64,
            core_widths=(128, 128),
            lstm_width=128,
        ),
        task=AgentTaskConfig(
            environment=EnvironmentConfig(name="catch"),
            vtrace=VTraceConfig(),
            environments=16,
            unroll=12,
            discount=0.95,
        ),
        train=TrainConfig(
            steps=2500,
            optimizer=OptimizerConfig(lr=2e-3, beta2=0.99, eps=1e-6, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=20, decay_fraction=0.5, decay_shape="linear"),
            clip_norm=1.0,
            evaluate_every=250,
            save_every=250,
            monitor_every=None,
        ),
        precision=PrecisionConfig(activations="fp32"),
    )


def catch_lstm() -> Run:
    """The same without attention: an LSTM that sees all features, the paper's baseline."""
    run = catch()
    return replace(run, name="catch_lstm", model=replace(run.model, core="lstm"))


def catch_ppo() -> Run:
    """The agent of catch, learning with PPO."""
    run = catch()
    task = replace(run.task, vtrace=None, ppo=PpoConfig(minibatches=2, clip=0.2), unroll=32)
    return replace(run, name="catch_ppo", task=task, train=replace(run.train, steps=4000))


def key_door() -> Run:
    """Fetch a key, pass a door and reach a goal on a map that is larger than the view."""
    run = catch()
    return replace(
        run,
        name="key_door",
        model=replace(run.model, rows=28, columns=28, actions=4),
        task=replace(
            run.task, environment=EnvironmentConfig(name="key_door"), unroll=24, discount=0.98, entropy_cost=0.02
        ),
        train=replace(run.train, steps=6000, evaluate_every=500, save_every=500),
    )


def cue_memory() -> Run:
    """Remember a colour and find its place later; one query, so what is asked for decides what is seen."""
    run = catch()
    return replace(
        run,
        name="cue_memory",
        model=replace(run.model, actions=4, queries=1),
        task=replace(run.task, environment=EnvironmentConfig(name="cue_memory")),
        train=replace(run.train, steps=4000, evaluate_every=500, save_every=500),
    )


def cue_memory_fixed() -> Run:
    """The ablation of cue_memory: the query is learned once and does not depend on what is remembered."""
    run = cue_memory()
    return replace(run, name="cue_memory_fixed", model=replace(run.model, query_kind="fixed"))


def pong() -> Run:
    """The paper's agent and settings on Atari Pong with V-trace; hours on a GPU (needs the extra atari)."""
    return Run(
        name="pong",
        model=AgentConfig(actions=6),
        task=AgentTaskConfig(
            environment=EnvironmentConfig(name="ale:Pong"),
            vtrace=VTraceConfig(),
            unroll=80,
            micro_environments=8,
            evaluate_episodes=4,
        ),
        train=TrainConfig(
            steps=4000,
            # IMPALA's ε of 0.01 and its clip of 40 are about a sum over 32 x 80 steps; here the loss is their mean.
            optimizer=OptimizerConfig(kind="rmsprop", lr=2e-4, beta2=0.99, eps=4e-6, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=100, decay_fraction=1.0, decay_shape="linear"),
            clip_norm=0.016,
            evaluate_every=500,
            save_every=250,
            monitor_every=None,
        ),
    )


def pong_ppo() -> Run:
    """The same agent with PPO, the usual settings of recurrent PPO on Atari."""
    run = pong()
    task = replace(run.task, vtrace=None, ppo=PpoConfig(), environments=8, group=8, unroll=128, micro_environments=None)
    optimizer = OptimizerConfig(lr=2.5e-4, beta2=0.999, eps=1e-5, weight_decay=0.0)
    return replace(run, name="pong_ppo", task=task, train=replace(run.train, optimizer=optimizer, clip_norm=0.5))


RECIPES: dict[str, Callable[[], Run]] = {
    "catch": catch,
    "catch_lstm": catch_lstm,
    "catch_ppo": catch_ppo,
    "key_door": key_door,
    "cue_memory": cue_memory,
    "cue_memory_fixed": cue_memory_fixed,
    "pong": pong,
    "pong_ppo": pong_ppo,
}
