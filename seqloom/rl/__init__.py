"""Environments, rollouts and policy losses: what reinforcement learning adds to the floors below."""
