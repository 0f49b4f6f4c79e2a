"""Puts published datasets into the data folder; the same as `domainbed data download`."""

from domainbed.cli.common import run_script
from domainbed.cli.data import download

if __name__ == "__main__":
    run_script(download)
