"""Lists the best hyper-parameters of an algorithm on a dataset's test domain."""

from domainbed.cli.common import run_script
from domainbed.cli.top_hparams import add_arguments, main

if __name__ == "__main__":
    run_script(add_arguments, main, "List the best hyper-parameters under each selection method.")
