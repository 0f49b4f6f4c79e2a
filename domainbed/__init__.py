"""Domain generalization: reproduce tables, launch sweeps, compare algorithms."""

__version__ = "0.1.0"
