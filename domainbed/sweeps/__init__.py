"""Sweeps: from a config to a grid of runs, their folders, and what became of them."""
