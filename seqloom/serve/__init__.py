"""Sampling and the generation engine."""
