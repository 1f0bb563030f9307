"""Hybrid Mamba-Transformer language models of the Nemotron family."""
