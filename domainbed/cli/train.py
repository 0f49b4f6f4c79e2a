"""`domainbed train`: one run."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from pydantic import Field

from domainbed.cli.common import command
from domainbed.config.run_fields import (
    TUNED,
    FixedHparams,
    RunFields,
    RunOptions,
    add_run_flags,
)
from domainbed.core.flags import read_flags
from domainbed.core.settings import Items, Listed, Text, load
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.spec import RunSpec


class TrainSettings(RunFields, RunOptions):
    """One run, as the command line names it; the names of flags are DomainBed's."""

    dataset: Text = Field(
        "ColoredDigits",
        description="a name from `domainbed list datasets`, folder:PATH, a YAML file, a .csv or "
        ".jsonl of images, table:FILE, arrays:FILE",
    )
    algorithm: Text = Field("ERM", description="a name from `domainbed list algorithms`")
    test_envs: Listed[int] = Field(
        (0,),
        description="numbers of the held-out domains, such as 0 1",
        json_schema_extra={"several_words": True},
    )
    hparams: FixedHparams = Field(
        default_factory=dict,
        description="""fixed hyper-parameters, as JSON: '{"lr": 0.001}'; tuned: those that a """
        "released baseline chose",
        json_schema_extra={"default_text": ""},
    )
    output_dir: Text = Field("train_output", description="the run's folder")
    hparams_seed: int = Field(
        0, ge=0, description="0: the default hyper-parameters; any other: a random draw"
    )
    trial_seed: int = Field(0, ge=0, description="determines the split")
    seed: int | None = Field(
        None,
        ge=0,
        description="seed of everything else",
        json_schema_extra={"default_text": "derived from the run, as in a sweep"},
    )
    plugins: Items[Text] = Field(
        (), description="modules, .py files or folders of forks to import first, which add names"
    )


_STATUS_OF_A_SIGNAL = 128  # as shells count
_OF_THE_RUN = ("dataset", "algorithm", "test_envs", "hparams", "hparams_seed", "trial_seed", "seed")


def spec_of(settings: TrainSettings) -> RunSpec:
    """The run that the settings describe."""
    from domainbed.spec import RunSpec  # imports PyTorch

    own = {name: getattr(settings, name) for name in _OF_THE_RUN}
    return RunSpec.create(**own, **settings.run_fields())


@command(
    lambda parser: add_run_flags(parser, TrainSettings),
)
def train(args: argparse.Namespace) -> int:
    """Train one algorithm on one dataset, with one or two domains held out for testing.

    An interrupted run resumes when the same command is given again. Several processes, on GPUs or
    on a CPU, share one run if `torchrun` starts them:
    torchrun --standalone --nproc-per-node 2 -m domainbed train …
    """
    given = read_flags(args, TrainSettings)
    if not isinstance(given.get("hparams", {}), dict) and given["hparams"] != TUNED:
        raise UserError(
            f"--hparams {given['hparams']!r}: expected a JSON object: '{{\"lr\": 0.1}}'"
        )
    settings = load(TrainSettings, None, given)
    # What is wrong with the flags should be told at once, not after PyTorch's import.
    from domainbed.core.stopping import Interrupted, stop_signal, stopping_on
    from domainbed.runs.folder import RunFolder
    from domainbed.runs.states import DONE, Busy
    from domainbed.training import ranks, run

    spec = spec_of(settings)
    folder = RunFolder(settings.output_dir)
    redone = settings.plugins_changed == "redo" and folder.changed_plugins()
    was_done = folder.state() == DONE and not redone
    stopped_by, is_first = int(signal.SIGINT), True
    try:
        with stopping_on([signal.SIGINT, signal.SIGTERM]):
            try:
                with ranks.joined(settings.device):
                    is_first = ranks.is_first()
                    run(spec, folder, settings.run_options(), echo=is_first)
            finally:
                stopped_by = stop_signal() or stopped_by
    except Busy as error:
        raise UserError(f"{error}: wait for it, or choose another --output_dir") from None
    except (Interrupted, KeyboardInterrupt):
        if is_first:
            print(f"\nInterrupted; the same command resumes from {folder.path}", file=sys.stderr)
        return _STATUS_OF_A_SIGNAL + stopped_by
    if is_first:
        print(f"{'Was finished before' if was_done else 'Finished'}: {folder.results}")
    return 0
