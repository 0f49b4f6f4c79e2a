"""The command `predict`: what its help names."""

from __future__ import annotations

import argparse

from domainbed.cli import predict
from domainbed.record_keys import AVERAGES


def test_the_help_names_all_averages() -> None:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    assert f"averaged weights of the run: {', '.join(AVERAGES)} (default: the last" in text
