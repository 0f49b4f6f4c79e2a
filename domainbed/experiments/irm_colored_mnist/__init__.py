"""Colored MNIST in the setup of IRM: the experiment of table 2 of Ramé et al. 2022 (Fishr)."""
