"""Nine rooms of equal anatomy; they never import one another."""
