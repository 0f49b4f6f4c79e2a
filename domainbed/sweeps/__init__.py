"""Sweeps: from a config to a grid of runs, their states, and what is made of finished runs."""
