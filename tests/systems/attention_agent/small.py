"""A run of seconds: catch with a few copies, short unrolls and narrow layers."""

from dataclasses import replace
from typing import Any

from seqloom.systems.attention_agent.config import ConvConfig, PpoConfig, Run
from seqloom.systems.attention_agent.recipes import catch


def small(learner: str = "vtrace", steps: int = 4, **task: Any) -> Run:
    run = catch()
    model = replace(
        run.model,
        convolutions=(ConvConfig(channels=4, kernel=5, stride=3), ConvConfig(channels=6, kernel=4, stride=2)),
        vision_channels=8,
        key_channels=3,
        frequencies=2,
        query_width=8,
        core_widths=(16, 12),
        lstm_width=10,
    )
    kind = {"vtrace": None, "ppo": PpoConfig(epochs=2, minibatches=2)} if learner == "ppo" else {}
    settings = {"environments": 4, "group": 2, "unroll": 6, "evaluate_episodes": 3, **kind, **task}
    train = replace(
        run.train,
        steps=steps,
        save_every=3,
        evaluate_every=100,
        log_every=1,
        device="cpu",
        schedule=replace(run.train.schedule, warmup_steps=0),
    )
    return replace(run, model=model, task=replace(run.task, **settings), train=train)
