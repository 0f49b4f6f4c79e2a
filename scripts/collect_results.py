"""Prints the results tables of a sweep folder: `collect_results.py --input_dir FOLDER`."""

from domainbed.cli.collect import add_script_arguments, script_main
from domainbed.cli.common import run_script

if __name__ == "__main__":
    run_script(add_script_arguments, script_main, "Select models and print the results tables.")
