"""What a run leaves in its folder: what defines it, where it was trained, and its weights.

`run.json` says whose folder it is, `environment.json` has versions and machine, and each record
repeats what defines the run. Which weights stay on disk (of each record, the last, or the selected)
is an option. Only a run that selects reads its records: that takes pandas along, half a second.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from domainbed.algorithms import Algorithm, get_algorithm_class, optimizers
from domainbed.algorithms.base import chosen_options
from domainbed.config.run_fields import RunOptions
from domainbed.core.files import (
    differs_from_digest,
    digest_file,
    sealed_json,
    write_digest,
    write_text,
    written_aside,
)
from domainbed.core.names import AVERAGES_BY_TITLE, average_in
from domainbed.core.plugins import plugins_of
from domainbed.core.version import __version__
from domainbed.errors import UserError
from domainbed.metrics import registered_as, selecting_metric
from domainbed.networks import NETWORKS, is_shape
from domainbed.networks.pretrained import load_plain
from domainbed.runs.folder import RunFolder, made_with_others, read_records
from domainbed.runs.packed import is_packed, packed_now
from domainbed.spec import RunSpec
from domainbed.training import checkpoint
from domainbed.training.averages import Averages
from domainbed.training.experiment import Experiment
from domainbed.training.ranks import count, is_first

if TYPE_CHECKING:
    from domainbed.selection import SelectionMethod

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")


def claim(
    folder: RunFolder, spec: RunSpec, plugins_changed: str | None = None
) -> dict[str, Any] | None:
    """Writes down that the folder is this run's, or makes sure that it is.

    Args:
        folder: of the run, owned by this process.
        spec: the run.
        plugins_changed: see `RunOptions`.

    Returns:
        The environment that the run started in; empty for a new run, None for one that is done.

    Raises:
        UserError: the folder holds another run, or one started with another PyTorch or, unless
            `plugins_changed` says what to do about that, with other plug-ins.
    """
    identity = json.loads(json.dumps(spec.identity()))
    owner = folder.read_json(folder.spec)
    # Nothing to lose: it failed at its start, say; or it was packed a moment ago.
    if not folder.has_results() and folder.path.name not in packed_now(folder.path.parent):
        return _new_run(folder, spec, identity)
    if owner is None:
        raise UserError(
            f"{folder.path} holds results, but no run.json says of which run: choose another "
            "--output_dir"
        )
    if owner.get("identity") != identity:
        raise UserError(f"{folder.path} holds another run ({_first_difference(owner, identity)}): "
                        "choose another --output_dir")  # fmt: skip
    if plugins_changed != "accept" and (names := folder.changed_plugins()):
        if plugins_changed is None:
            raise made_with_others(f"the run in {folder.path} was", names)
        if is_packed(folder.path):
            raise UserError(f"{folder.path} is packed: `domainbed sweep unpack` takes it out")
        folder.set_aside()
        return _new_run(folder, spec, identity)
    if folder.is_done():
        read_records(folder.path)  # which raises if they are damaged
        checkpoint.remove(folder)  # the run may have been killed before it did
        return None
    began = folder.read_json(folder.environment) or {}
    then, now = began.get("torch"), _versions()["torch"]
    # Numbers of two major versions are not mixed within one run.
    if then and str(then).split(".")[0] != now.split(".")[0]:
        raise UserError(
            f"the run in {folder.path} was started with PyTorch {then}, and this is {now}: resume "
            "it with that version, or start it again in another folder"
        )
    return began


def _new_run(folder: RunFolder, spec: RunSpec, identity: dict[str, Any]) -> dict[str, Any]:
    write_text(
        folder.spec,
        sealed_json(
            {**spec.as_json(), "run_id": spec.run_id, "identity": identity},
            indent=2,
            sort_keys=True,
        ),
    )
    return {}


def refuse_other_data(folder: RunFolder, began: Mapping[str, Any], experiment: Experiment) -> None:
    """Makes sure that a run resumes on the data that it was started on.

    Raises:
        UserError: it is other data; the message says what differs.
    """
    if "data" in began and (changed := difference(began["data"], experiment.data)):
        raise UserError(
            f"the run in {folder.path} was started on other data ({changed}): put the data back "
            "as it was, or choose another --output_dir",
            "dataset",
        )


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two `data_facts`; "" for nothing."""
    for name in ("domains", "classes", "images"):
        if then.get(name) != now[name]:
            return f"{name} were {_listed(then.get(name))}, and are {_listed(now[name])}"
    return "" if then.get("digest") == now["digest"] else "other images or labels"


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else repr(values)


def _first_difference(owner: dict[str, Any], identity: dict[str, Any]) -> str:
    theirs = owner.get("identity") or {}
    names = [n for n in {**identity, **theirs} if theirs.get(n) != identity.get(n)]
    return f"{names[0]} is {theirs.get(names[0])!r} there and {identity.get(names[0])!r} here"


def args_of(experiment: Experiment, folder: RunFolder, options: RunOptions) -> dict[str, Any]:
    """What defines the run, and where it ran, under DomainBed's names and some more."""
    values = experiment.spec.as_json()
    fixed = values.pop("fixed_hparams")
    args = {
        **values,
        "hparams": json.dumps(fixed) if fixed else None,
        "run_id": experiment.spec.run_id,
        "torch": _versions()["torch"],
        "environments": experiment.domain_names,
        "data_dir": options.data_dir,
        "output_dir": str(folder.home),
        "skip_model_save": options.weights == "none",
        "save_model_every_checkpoint": options.weights == "all",
    }
    declared = experiment.dataset.test_domains
    if declared is not None:  # for the tables, where not every domain is one to test on
        args["test_domains"] = list(declared)
    if (stages := experiment.stages) > 1:
        args["stages"] = stages
    if options.selection_metric:  # for the tables
        args["selection_metric"] = options.selection_metric
    return args


def write_environment(
    folder: RunFolder,
    experiment: Experiment,
    began: Mapping[str, Any],
    progress: checkpoint.Progress,
) -> None:
    """Keeps the environment that the run started in, and adds that of a later session."""
    now = {**describe(experiment.device), "processes": count(), "plugins": _plugins(experiment)}
    first = {name: began.get(name, value) for name, value in now.items()}
    resumed = [*began.get("resumed", [])]
    if progress.records and began and now != first and now not in resumed:
        resumed.append(now)
    kind, colon, path = experiment.spec.dataset.rpartition(":")
    there = os.path.abspath(os.path.expanduser(path))
    facts = {
        **first,
        "data": experiment.data,
        "place": {  # of the data, for what looks at the run later
            "dataset": kind + colon + (there if os.path.exists(there) else path),
            "data_dir": os.path.abspath(experiment.data_dir),
        },
        "encoding": experiment.dataset.encoding,
        "protocol": experiment.spec.protocol,
        "protocol_version": experiment.spec.protocol_version,
        "resumed": resumed,
        "seconds": progress.seconds,
    }
    write_text(folder.environment, sealed_json(facts, indent=2))


def _plugins(experiment: Experiment) -> dict[str, str]:
    """The digests of the plug-ins that define what the run's numbers depend on."""
    chosen = chosen_options(type(experiment.algorithm), experiment.spec.hparams)
    named = [*registered_as(experiment.spec.metrics), *optimizers.registered_as(chosen)]
    named.append(NETWORKS.get(experiment.spec.hparams.get("featurizer", "")))
    return plugins_of([*experiment.algorithm.modules(), *named, experiment.dataset])


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit, as JSON values: what a reader of numbers may ask."""
    return {
        "domainbed": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        **_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    return {package: version(package) for package in _PACKAGES}


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, if it is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class KeptModels:
    """Writes the weights that `options.weights` asks for, and removes those no longer needed.

    With "selected" a record's weights stay as long as a selection method would choose its step
    from the records so far. Methods that compare runs, or the runs of a pair, do not count. Of a
    run with several stages only the last weights can be chosen.

    Args:
        experiment: of the run.
        folder: of the run.
        options: what is kept.
        last: the last step that has a record.

    Raises:
        UserError: a selection method is unknown, or the run does not record what it chooses by.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, options: RunOptions, last: int
    ) -> None:
        self._folder, self._options, self._last = folder, options, last
        self._spec = experiment.spec
        self._methods: list[SelectionMethod] = []
        self._wanted: set[Path] = set()  # by the last record
        self._selects_records = options.weights == "selected" and experiment.stages == 1
        if options.weights == "selected":
            from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS

            names = PUBLISHED_METHODS if options.selection is None else options.selection
            for method in [SELECTION_METHODS[name] for name in names]:
                method.require(options.selection_metric, self._spec.labels, self._spec.metrics)
                if not method.needs_pairs and method.counts(self._spec.test_envs):
                    self._methods.append(method)

    def after_record(
        self, experiment: Experiment, averages: Averages, step: int, ended: bool
    ) -> None:
        """Writes the weights at the last record in results.jsonl, if they are to be kept.

        Args:
            experiment: at its stage.
            averages: of its weights.
            step: of the record.
            ended: whether the stage ends there.
        """
        if self._options.weights == "all":
            file = self._folder.model_file("", step, experiment.stage_number)
            self._save(experiment, averages, "", file)
        elif self._selects_records:
            self._wanted.clear()
            for name, chosen in self._chosen(step, ended):
                file = self._folder.model_file(name, chosen)
                self._wanted.add(file)
                if chosen == step and not is_final(self._spec, step, ended):
                    self._save(experiment, averages, name, file)

    def remove_others(self) -> None:
        """Removes what is no longer chosen, once a resumed run does not need it.

        Where this session has made no record yet, nothing is known of what is.
        """
        for file in self._folder.path.glob("model_step*.pkl") if self._wanted else ():
            if file not in self._wanted:
                digest_file(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)

    def at_end(self, experiment: Experiment, averages: Averages) -> None:
        """Writes the last weights, unless no method would choose any."""
        is_kept = self._options.weights in ("all", "last") or self._methods
        for name in ("", *averages) if is_kept else ():
            self._save(experiment, averages, name, self._folder.model_file(name))

    def _save(self, experiment: Experiment, averages: Averages, name: str, file: Path) -> None:
        """Writes the last weights, or with a `name` those of an average.

        All processes of a run put an average in place, as they share its passes; one writes it.
        """
        with averages.in_place(name) if name else nullcontext():
            if is_first():
                save_model(experiment, file, args_of(experiment, self._folder, self._options))

    def _chosen(self, step: int, ended: bool) -> set[tuple[str, int]]:
        """What to keep after the record of a step: steps of each average, and of the last, ""."""
        from domainbed.runs.batches import read_batch  # it imports pandas, half a second
        from domainbed.selection.judging import by_metric

        at_end = ended or step == self._last
        # What always chooses the last step will not stay with one before it.
        methods = [method for method in self._methods if at_end or not method.chooses_last]
        labels, metrics = self._spec.labels, self._spec.metrics
        metric = selecting_metric(self._options.selection_metric, labels, metrics)
        records = by_metric(read_batch([self._folder.results]).as_records(), metric)
        return {
            (AVERAGES_BY_TITLE.get(average_in(row["algorithm"]), ""), int(row["step"]))
            for method in methods
            for row in method.score(records).to_dict("records")
        }


def is_final(spec: RunSpec, step: int, ended: bool = False) -> bool:
    """Whether the weights at a step are those that a run ends with; `ended`: its last record.

    What an algorithm does at its end may change them after the last record.
    """
    changes = get_algorithm_class(spec.algorithm).on_end is not Algorithm.on_end
    return (ended or step == spec.steps - 1) and not changes


def save_model(experiment: Experiment, file: Path, args: Mapping[str, Any]) -> None:
    """Writes the weights with what is needed to rebuild the algorithm, and their digest.

    The keys are DomainBed's and some more.
    """
    shape = experiment.dataset.input_shape
    with written_aside(file) as aside:
        torch.save(
            {
                "args": dict(args),
                "model_input_shape": tuple(shape) if is_shape(shape) else shape,
                "model_num_classes": experiment.outputs,
                "model_num_domains": len(experiment.train_envs),
                "model_hparams": experiment.spec.hparams,
                "model_facts": asdict(experiment.facts),
                "model_dict": experiment.algorithm.state_dict(),
                "model_classes": list(experiment.dataset.class_names),
                "model_reads_images": experiment.dataset.reads_images,
                "model_encoding": experiment.dataset.encoding,
            },
            aside,
        )
        write_digest(file, aside)


def read_model(file: Path, run_id: str) -> dict[str, Any]:
    """What `save_model` wrote; reading it runs no code from the file.

    Raises:
        UserError: it was not kept, is damaged, or is another run's.
    """
    if not file.is_file():
        raise UserError(
            f"{file.parent} holds no {file.name}: train the run again, in another folder and "
            "without --skip_model_save"
        )
    if differs_from_digest(file):
        raise UserError(f"{file} is damaged (its digest is another): train the run again")
    try:
        content = load_plain(file)
        owner, *_ = content["args"]["run_id"], content["model_dict"], content["model_facts"]
    except Exception as error:  # unpickling what is no model raises anything
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}): train the run again"
        ) from error
    if owner != run_id:
        raise UserError(f"{file} holds the weights of another run ({owner}): train the run again")
    return dict(content)
