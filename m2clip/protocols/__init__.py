"""Comparisons of several runs: few-shot, base to novel, and the demonstration."""
