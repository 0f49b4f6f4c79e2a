"""Lists the best hyper-parameters of an algorithm; the same as `domainbed top-hparams`."""

from domainbed.cli.common import run_script
from domainbed.cli.tables import top_hparams

if __name__ == "__main__":
    run_script(top_hparams)
