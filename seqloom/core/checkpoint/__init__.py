"""Crash-safe folders: tensors, digests, the commit, and the run folder built from them."""
