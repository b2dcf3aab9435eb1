"""Weights on the disk: adapters with their configuration, and the authors' own checkpoints."""
