"""Agents that were not trained and still prefer something: large random queries, policies and values."""

from dataclasses import replace
from typing import Any

import torch

from seqloom.rl.environment import make_environment
from seqloom.systems.attention_agent.model import AttentionAgent
from seqloom.systems.attention_agent.play import Player
from tests.systems.attention_agent.small import small


@torch.no_grad()
def excited(**changes: Any) -> Player:
    """A player of catch."""
    run = small()
    torch.manual_seed(3)
    model: AttentionAgent = replace(run.model, **changes).build().eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("policy", "query", "value", "lstm", "vision")):
            parameter.mul_(3)
    facts = make_environment(run.task.environment).facts
    return Player(model=model, environment=run.task.environment, facts=facts, seed=5, limit=100)
