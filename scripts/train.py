"""Trains one run; the same as `domainbed train`."""

from domainbed.cli.common import run_script
from domainbed.cli.train import train

if __name__ == "__main__":
    run_script(train)
