"""Attention-augmented reinforcement-learning agents, which show what they look at."""
