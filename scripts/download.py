"""Puts published datasets into the data folder; the same as `domainbed download`."""

from domainbed.cli import download
from domainbed.cli.common import run_script

if __name__ == "__main__":
    run_script(download.add_arguments, download.main, download.__doc__ or "")
