"""`domainbed sweep`: plan a grid of runs, launch it, watch it, repair it."""

import argparse
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from domainbed.cli.common import argument, command
from domainbed.cli.launching import (
    add_launcher_flags,
    confirmed,
    launch_prepared,
    launch_sweep,
    launcher_flags,
    watch,
)
from domainbed.config.run_fields import add_run_flags
from domainbed.core.flags import add_flags, read_flags
from domainbed.core.text_table import printable
from domainbed.errors import UserError, in_shell
from domainbed.launchers import RayLauncher
from domainbed.runs import packing
from domainbed.runs.ownership import shown_job
from domainbed.runs.states import DONE, MISSING
from domainbed.sweeps import engines
from domainbed.sweeps.config import SweepConfig, load_config, shipped_config
from domainbed.sweeps.status import (
    count_runs,
    status_json,
    status_lines,
    status_of,
)
from domainbed.sweeps.store import Store, remove

_RERUN_FIELDS = (
    *("plugins", "plugins_changed", "selection_metric", "data_dir", "device", "num_workers"),
    *("keep", "launcher"),
)
_LONGEST_PAUSE = 86_400  # a day; Python cannot sleep for ever


# ---- which sweep is meant ----


_CONFIG = (
    argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a YAML file, the folder of a sweep, or one that comes with domainbed (quickstart, "
        "zoo, laptop, paper/pacs, …); flags override its values",
    ),
    lambda parser: add_run_flags(parser, SweepConfig),
    add_launcher_flags,
)
"""The config, a flag for each of its fields, and one for each option of the launchers."""

_TARGET = (
    argument("target", metavar="FOLDER_OR_CONFIG", help="the folder of a sweep, or its config"),
    lambda parser: add_flags(parser, SweepConfig, only=["plugins"]),
)


def _load(target: str | None, args: argparse.Namespace) -> SweepConfig:
    """The config in a file, or of the last launch into a folder, with what flags say over it.

    Raises:
        UserError: there is no such file or folder, or it holds no config.
    """
    overrides, options = read_flags(args, SweepConfig), launcher_flags(args)
    if target is None:
        return load_config(None, overrides, **options)
    target = target if os.path.exists(target) else shipped_config(target)
    is_folder = os.path.isdir(target)
    store = Store(target if is_folder else Path(target).parent)
    # A config that a launch left in a sweep's folder means that folder.
    if not is_folder and not (Path(target).name == store.config.name and store.plan.is_file()):
        return load_config(target, overrides, **options)
    for file in (store.config, store.plan):
        if not file.is_file():
            raise UserError(
                f"{target!r} holds no {file.name}: name the folder of a launched sweep, or a config"
            )
    # The folder may have been moved since it was launched.
    return load_config(store.config, {"output_dir": str(store.root), **overrides}, **options)


def _refuse_reruns(target: str | None) -> None:
    """Makes sure that a config is meant: none says which chosen runs are to be rerun.

    Raises:
        UserError: it is the folder of new trials of what was chosen.
    """
    from domainbed.sweeps.selected import is_rerun

    if target and is_rerun(Path(target)):
        raise UserError(
            f"{target!r} holds new trials of what was chosen: `domainbed sweep rerun-best "
            f"{in_shell(Path(target).parent)}`, with the same --trials, resumes them, and with "
            "--retry repeats what failed"
        )


# ---- plan, launch, retry, rerun-best ----


@command(
    argument(
        "--measure",
        action="store_true",
        help="time a few updates of each algorithm on each dataset instead of finished runs",
    ),
    *_CONFIG,
)
def plan(args: argparse.Namespace) -> int:
    """Show what a launch would do, without running anything: runs per selection method, costs."""
    _refuse_reruns(args.config)
    from domainbed.sweeps.launch import prepare
    from domainbed.sweeps.outlook import measured_costs, outlook, plan_lines

    launch, costs = prepare(_load(args.config, args)), None
    print("\n".join(outlook(launch)), flush=True)
    if args.measure and launch.todo:
        costs = measured_costs(launch, lambda line: print(line, file=sys.stderr))
    print("\n".join(plan_lines(launch, costs)))
    return 0


_DRY_RUN = (
    "--skip_confirmation",
    argument(
        "--dry_run",
        action="store_true",
        help="say what would be done, and how long it takes if finished runs show it",
    ),
)
_LAUNCH = (
    *_DRY_RUN,
    argument(
        "--wait",
        action="store_true",
        help="wait until all runs are done, including those of earlier launches",
    ),
    argument(
        "--resubmit",
        action="store_true",
        help="withdraw queued runs, and submit them again with the options of this launch",
    ),
    *_CONFIG,
)


@command(*_LAUNCH)
def launch(args: argparse.Namespace) -> int:
    """Execute the runs that are not done. Interrupted ones resume where they stopped."""
    return _launch(args)


@command(*_LAUNCH)
def retry(args: argparse.Namespace) -> int:
    """Repeat the failed runs."""
    return _launch(args, retry=True)


def _launch(args: argparse.Namespace, retry: bool = False) -> int:
    _refuse_reruns(args.config)
    return launch_sweep(
        _load(args.config, args),
        retry=retry,
        dry_run=args.dry_run,
        wait=args.wait,
        skip_confirmation=args.skip_confirmation,
        resubmit=args.resubmit,
    )


@command(
    argument("folder", metavar="FOLDER", help="folder of a sweep with finished runs"),
    # Of a config they would be fields, with another meaning.
    argument(
        "--trials",
        dest="new_trials",
        type=int,
        default=10,
        metavar="N",
        help="number of new trials (default: 10)",
    ),
    argument(
        "--selection",
        dest="methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help="selection methods (default: the sweep's)",
    ),
    argument("--retry", action="store_true", help="repeat failed runs"),
    argument("--wait", action="store_true", help="wait for runs that an engine executes"),
    *_DRY_RUN,
    lambda parser: add_flags(
        parser.add_argument_group("fields of the config", "each overrides the sweep's value"),
        SweepConfig,
        only=_RERUN_FIELDS,
    ),
    add_launcher_flags,
)
def rerun_best(args: argparse.Namespace) -> int:
    """Repeat what selection methods chose, in new trials."""
    if args.new_trials < 1:
        raise UserError(f"--trials {args.new_trials}: expected a whole number from 1 on")
    config = _load(args.folder, args)
    from domainbed.sweeps.selected import prepare_reruns, rerun_methods

    exit_status = 0
    for method in rerun_methods(config, args.methods):
        launch = prepare_reruns(config, method, args.new_trials, args.retry)
        found = launch_prepared(launch, args.dry_run, args.wait, args.skip_confirmation)
        exit_status = max(exit_status, found)  # of several methods the highest
        if exit_status >= 128:  # interrupted
            break
    return exit_status


# ---- status ----


@command(
    *_TARGET,
    lambda parser: add_flags(parser, RayLauncher, only=["address"]),
    argument("--json", action="store_true", help="print JSON, for programs"),
    argument(
        "--watch", action="store_true", help="repeat until nothing is running or will be started"
    ),
    argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="pause, with --watch (default: 2 at first, later 30)",
    ),
)
def status(args: argparse.Namespace) -> int:
    """Count the runs by their state."""
    if args.watch and args.json:
        raise UserError("--watch is for people and --json for programs: give one of them")
    if args.every is not None and not (args.watch and 0 < args.every <= _LONGEST_PAUSE):
        raise UserError(
            f"--every {args.every:g}: expected seconds above 0 and at most {_LONGEST_PAUSE}, with "
            "--watch"
        )
    address = read_flags(args, RayLauncher, only=["address"])
    if Path(args.target).is_dir():  # it may be a stranger's: no address that it names is contacted
        store, chosen = Store(args.target), {"name": "ray", **address}
        runs = store.planned()
    else:
        config = _load(args.target, args)
        store, chosen = Store(config.output_dir), {**config.launcher, **address}
        runs = {run.run_id: run.planned() for run in config.plan()}
    look = partial(status_of, store, runs, ask=partial(engines.as_reported, store, chosen))
    if args.watch:
        with suppress(KeyboardInterrupt):  # the usual end of watching
            return int(set(watch(look, args.every).total) != {DONE})
        return 0
    found = look()
    print(status_json(found) if args.json else "\n".join(status_lines(found)))
    return 0


# ---- pack, unpack ----


@command(
    argument("folder", metavar="FOLDER", help="folder of a sweep, which may be in progress"),
)
def pack(args: argparse.Namespace) -> int:
    """Move the texts of finished runs into a few files, which all commands read like folders."""
    store = Store(args.folder)
    store.planned()  # which raises where there is no sweep
    print(f"packed {count_runs(packing.pack(store.root))}")
    return 0


@command(
    argument("folder", metavar="FOLDER", help="of a sweep"),
    argument("runs", metavar="RUN", nargs="*", help="ids (default: all)"),
)
def unpack(args: argparse.Namespace) -> int:
    """Move packed runs back into folders as they were."""
    store = Store(args.folder)
    store.planned()
    print(f"unpacked {count_runs(packing.unpack(store.root, args.runs))}")
    return 0


# ---- cancel, delete-incomplete, export, import ----


@command(*_TARGET, add_launcher_flags)
def cancel(args: argparse.Namespace) -> int:
    """Stop the runs that are queued or running."""
    config = _load(args.target, args)
    store = Store(config.output_dir)
    cancelled = engines.cancel(store, store.statuses(store.planned()), config.launcher)
    for engine, jobs in cancelled.items():
        shown = ", ".join(sorted(map(shown_job, jobs))[:10]) + (", …" if len(jobs) > 10 else "")
        print(printable(f"{engine}: cancelled {len(jobs)} job{'s' * (len(jobs) != 1)} ({shown})"))
    if not cancelled:
        print("nothing of this sweep is queued or running")
    return 0


@command(
    *_TARGET,
    argument(
        "--skip_confirmation",
        action="store_true",
        help="do not ask (needed where there is no terminal)",
    ),
)
def delete_incomplete(args: argparse.Namespace) -> int:
    """Remove the folders of runs that are neither done nor running."""
    root = Path(_load(args.target, args).output_dir if Path(args.target).is_file() else args.target)
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is not a folder: name the folder of a sweep")
    folders = Store(root).incomplete()
    if not folders:
        print("no incomplete runs")
        return 0
    if not args.skip_confirmation and not sys.stdin.isatty():
        raise UserError(
            f"{count_runs(len(folders))} in {str(root)!r} would be deleted, and nobody is there to "
            "confirm it: give --skip_confirmation"
        )
    question = f"Delete the folders of {count_runs(len(folders))}, with all that they hold?"
    if args.skip_confirmation or confirmed(question):
        print(f"deleted {count_runs(sum(remove(folder) for folder in folders))}")
    return 0


@command(
    argument("folder", metavar="FOLDER", help="of a sweep"),
    argument("file", metavar="FILE.parquet", help="to write"),
)
def export(args: argparse.Namespace) -> int:
    """Write the records and specs of all runs into one file, which `domainbed collect` reads."""
    from domainbed.runs.exported import SUFFIX, write_export

    root, file = Path(args.folder), Path(args.file)
    if file.suffix != SUFFIX:
        raise UserError(f"{args.file!r}: expected a name that ends in {SUFFIX}")
    begun = [each.path for each in Store(root).run_folders() if each.state() != MISSING]
    if not begun:
        raise UserError(f"{args.folder!r} holds no runs: name the folder of a launched sweep")
    written = write_export(root, begun, file)
    print(f"{count_runs(written)}: {file} ({file.stat().st_size / 1e6:.3g} MB)")
    return 0


@command(
    argument("file", metavar="FILE.parquet", help="from `domainbed sweep export`"),
    argument("-o", "--output_dir", required=True, metavar="FOLDER", help="new, or empty"),
)
def import_(args: argparse.Namespace) -> int:
    """Unpack an exported sweep into a folder, where a launch does the runs that are not done."""
    from domainbed.runs.exported import unpack

    file, root = Path(args.file), Path(args.output_dir)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{args.output_dir!r} is there already: name a new folder, or an empty one")
    if not file.is_file():
        raise UserError(
            f"{args.file!r} {'is not a file' if file.exists() else 'does not exist'}: name an "
            "exported sweep"
        )
    unpack(file, root)
    print("\n".join(status_lines(status_of(Store(root), Store(root).planned()))))
    return 0
