"""Trains one run; the same as `domainbed train`."""

from domainbed.cli import train
from domainbed.cli.common import run_script

if __name__ == "__main__":
    run_script(train.add_arguments, train.main, train.__doc__ or "")
