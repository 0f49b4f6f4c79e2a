"""Experiments of single papers, which are no sweeps of runs."""
