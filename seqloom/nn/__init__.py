"""Modules and the state they keep between calls."""
