"""Fewer bits for a trained model: calibration, the choice of formats, and what each costs in accuracy."""
