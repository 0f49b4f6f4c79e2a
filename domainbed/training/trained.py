"""Trained runs: their experiment, their model, its predictions and the images they are of."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from domainbed.algorithms import Algorithm, get_algorithm_class
from domainbed.config.run_facts import HParams, RunFacts, made_for
from domainbed.config.run_fields import RunOptions
from domainbed.core.device import choose_device
from domainbed.core.minibatch import Nest, mapped, taken, tensors_of
from domainbed.core.names import dataset_label
from domainbed.core.plugins import warn_once
from domainbed.core.seeding import global_sources_kept, seed_everything
from domainbed.datasets import DATASETS, get_dataset_class
from domainbed.datasets.base import domains_of
from domainbed.datasets.domain import EVALUATION_BATCH, Draw
from domainbed.datasets.features import FeatureExtractor
from domainbed.datasets.image_domains import decoding_of
from domainbed.datasets.images.dataset_files import read_image
from domainbed.datasets.images.transforms import IMAGE_SIZE, evaluation_transform
from domainbed.errors import UserError, log
from domainbed.hparams import default_hparams
from domainbed.metrics.labels import LabelType, label_type
from domainbed.networks import NETWORKS
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import Predicted, write_predictions
from domainbed.runs.states import DONE
from domainbed.spec import RunSpec
from domainbed.training.artifacts import difference, read_model
from domainbed.training.evaluation import EvaluationSplit, splits_to_evaluate
from domainbed.training.experiment import Experiment, build, dataset_of
from domainbed.training.sampling import shuffled


def read_spec(folder: RunFolder, dataset: str | None = None) -> RunSpec:
    """The spec of a finished run.

    Args:
        folder: the run's.
        dataset: what to load in place of the dataset that run.json names, whose images may lie
            anywhere (`folder:PATH`); None for the one it names.

    Raises:
        UserError: the folder holds no finished run, or `dataset` is another one.
    """
    content = folder.read_json(folder.spec)
    if content is None:
        if (folder.path / "plan.json").is_file():
            raise UserError(f"{folder.path} is a sweep and holds no run.json: name one of its runs")
        raise UserError(f"{folder.path} holds no run.json: name the folder of a trained run")
    if folder.state() != DONE:
        raise UserError(f"the run in {folder.path} is {folder.state()}: train it to its end first")
    values = {name: v for name, v in content.items() if name not in ("run_id", "identity")}
    try:
        spec = RunSpec.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder.spec} is of another version, or describes no run ({field}: {first['msg']}): "
            "train the run again"
        ) from error
    if changed := folder.changed_plugins(missing=False):
        warn_once(
            f"runs in {folder.path.parent} were made with another version of {', '.join(changed)}"
        )
    expected = default_hparams(spec.algorithm, dataset or spec.dataset, spec.features is not None)
    # Data that may be anywhere counts as images, and may have had a network of its own.
    lacking = set(expected) - set(spec.hparams) - {"resnet18", "resnet_dropout"}
    if lacking:
        raise UserError(
            f"{folder.spec} is of another version, or describes no run (hparams: {min(lacking)!r} "
            "is missing): train the run again"
        )
    if dataset is None:
        return spec
    if dataset_label(dataset) != spec.dataset_label:
        raise UserError(
            f"--dataset {dataset!r} is not {spec.dataset_label}, which {folder.path} was trained on"
        )
    return spec.model_copy(update={"dataset": dataset})


def rebuild(
    folder: RunFolder, machine: RunOptions | None = None, dataset: str | None = None
) -> Experiment:
    """The experiment of a finished run, with the weights before training.

    Its data is looked for where it was then, unless `dataset` or `machine` says where it is. The
    process's random sources stay as they are.

    Raises:
        UserError: see `read_spec` and `experiment.build`; or the data has other domains or
            classes than what the run was trained on.
    """
    spec, machine = read_spec(folder, dataset), machine or RunOptions()
    kept = folder.read_json(folder.environment) or {}
    place = kept.get("place", {})
    if "data_dir" not in machine.model_fields_set:
        machine = machine.model_copy(update={"data_dir": place.get("data_dir", "data")})
    if dataset is None and spec.dataset not in DATASETS:
        there = place.get("dataset", "")
        if not os.path.exists(there.rpartition(":")[2]):
            raise UserError(
                f"{folder.path} was trained on {there or spec.dataset!r}, which is not there or "
                "not registered: say where its images are with --dataset folder:PATH, or what "
                "registers it with --plugins"
            )
        spec = spec.model_copy(update={"dataset": there})
    with global_sources_kept():
        experiment = build(spec, machine, kept.get("encoding"))
    require_same_names(folder, experiment)
    experiment.facts.begin(spec.steps - 1)
    return experiment


def require_same_names(folder: RunFolder, experiment: Experiment) -> None:
    """Makes sure that data has the domains and classes that a run was trained on.

    Other images of these are named in a warning.

    Raises:
        UserError: it has others.
    """
    trained = (folder.read_json(folder.environment) or {}).get("data") or {}
    here = {"domains": experiment.domain_names, "classes": list(experiment.dataset.class_names)}
    for what in [name for name in here if name in trained]:
        if trained[what] != here[what]:
            raise UserError(
                f"the run in {folder.path} was trained on the {what} "
                f"{', '.join(map(str, trained[what]))}, and the data has {', '.join(here[what])}: "
                "name the data that it was trained on",
                "dataset",
            )
    if "digest" in trained and (changed := difference(trained, experiment.data)):
        log.warning(
            "warning: the run in %s was trained on other images of the same domains and classes "
            "(%s)", folder.path, changed,
        )  # fmt: skip


def load_trained_weights(
    experiment: Experiment, folder: RunFolder, average: str | None = None
) -> None:
    """Gives the algorithm the weights it had after training, or an average of its run's.

    Raises:
        UserError: they were not kept, are damaged, or are of another run or network; or the run
            has no such average.
    """
    content = read_model(_model_file(folder, experiment.spec, average), experiment.spec.run_id)
    experiment.facts.begin(content["model_facts"]["step"])
    _load(experiment.algorithm, content["model_dict"], folder)


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict.

    Attributes:
        module: the algorithm, in evaluation mode.
        classes: the names of its classes, in the order of the logits; where labels are not classes,
            of their columns.
        input_shape: the dataset's: of one input, without the batch, or what else describes it.
        preprocess: from the file of an image to an input; None where inputs are no image files.
        spec: what defines its run.
        encoding: of tables and arrays, how their values become inputs, see
            `domainbed.datasets.samples.encoded`; else None.
    """

    module: Algorithm
    classes: list[str]
    input_shape: Any
    preprocess: Callable[[Path], torch.Tensor] | None
    spec: RunSpec
    encoding: Any = None

    @torch.no_grad()
    def probabilities(self, x: Nest) -> torch.Tensor:
        """(B, *input_shape), or a nest of inputs, to (B, C); of binary labels (B, 2).

        Where numbers are regressed, they are the predicted ones.

        Where predictions depend on the other images of a batch (`module.predicts_batches`), all
        of x is taken as images of one domain, and predicted in the batches of `together`.
        """
        if not self.module.predicts_batches:
            return _probabilities(self.spec, self.module.predict(x))
        batches, predict = self.together(len(tensors_of(x)[0])), self.module.predictor()
        found = torch.cat([_probabilities(self.spec, predict(taken(x, b))) for b in batches])
        return found[torch.tensor([place for batch in batches for place in batch]).argsort()]

    def together(self, n: int) -> list[list[int]]:
        """Which of n images to predict in one batch, by their positions.

        Each by itself; or where that depends on the batch, as in evaluation, `EVALUATION_BATCH`
        at a time in random order, so that classes are mixed however the images are sorted.
        """
        if not self.module.predicts_batches:
            return [[position] for position in range(n)]
        order = shuffled(n, self.spec.seed)
        return [order[i : i + EVALUATION_BATCH] for i in range(0, n, EVALUATION_BATCH)]


def _probabilities(spec: RunSpec, outputs: torch.Tensor) -> torch.Tensor:
    """(B, C) of outputs (B, C), or (B, 2) of the single logit of binary labels."""
    labels = label_type(spec.labels)
    scores = labels.scores(outputs)
    return torch.cat([1 - scores, scores], dim=1) if labels.kind == "binary" else scores


def _model_file(folder: RunFolder, spec: RunSpec, average: str | None) -> Path:
    """The file of the last weights, or of an average.

    Raises:
        UserError: the run has no such average.
    """
    if average is None:
        return folder.model
    if average not in spec.averages:
        has = f"averages {', '.join(spec.averages)}" if spec.averages else "no averages"
        raise UserError(
            f"the run in {folder.path} has {has}, and no {average!r}: train it with "
            "--averages, in another folder",
            "average",
        )
    return folder.model_file(average)


def load_model(folder: Path | str, device: str | None = None, average: str | None = None) -> Model:
    """The trained model of a run; its dataset is not needed.

    Args:
        folder: of a finished run with its weights.
        device: cpu, cuda or mps; None finds the best there is.
        average: of the run's `averages`, the one to load; None for the last weights.

    Raises:
        UserError: the folder holds no finished run with its weights, or no such average.

    Examples:
        >>> model = load_model("results/one_run")  # doctest: +SKIP
        >>> x = model.preprocess(Path("cat.jpg"))[None]  # doctest: +SKIP
        >>> model.classes[model.module.predict(x).argmax()]  # doctest: +SKIP
    """
    run = RunFolder(folder)
    return model_in(run, _model_file(run, read_spec(run), average), device)


def model_in(run: RunFolder, file: Path, device: str | None = None) -> Model:
    """The model of a run, with the weights in a file of it.

    Raises:
        UserError: see `load_model`.
    """
    spec = read_spec(run)
    content = read_model(file, spec.run_id)
    if content["model_hparams"].get("featurizer", "") not in ("", *NETWORKS):
        DATASETS.get(spec.dataset_label)  # of an installed package, where its network is as well
    facts = RunFacts(**content["model_facts"])
    with global_sources_kept(), made_for(facts):  # all weights are replaced: none is downloaded
        seed_everything(spec.initial_seed)  # what a prediction draws is what it drew in training
        module = get_algorithm_class(spec.algorithm)(
            content["model_input_shape"],
            content["model_num_classes"],
            content["model_num_domains"],
            HParams({**content["model_hparams"], "weights": "none"}, facts),
        )
    _load(module, content["model_dict"], run)
    return Model(
        module.to(choose_device(device)).eval(),
        content["model_classes"],
        content["model_input_shape"],
        _image_input(spec) if content["model_reads_images"] else None,
        spec,
        content.get("model_encoding"),
    )


def _image_input(spec: RunSpec) -> Callable[[Path], torch.Tensor]:
    """From the file of an image to an input, which is its features where the run is on these."""
    decoding, size = decoding_of(spec.hparams), spec.hparams.get("image_size")
    extractor = FeatureExtractor(spec.features, size=size) if spec.features else None

    def read(file: Path) -> torch.Tensor:
        image = read_image(Path(file), decoding)
        if extractor:
            return extractor.features(extractor.image(image)[None])[0].float()
        return evaluation_transform(image, size or IMAGE_SIZE)

    return read


def _load(module: Algorithm, state: dict[str, Any], folder: RunFolder) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{folder.model} does not fit {type(module).__name__} ({reason}): train the run again "
            "with this version"
        ) from error


@torch.no_grad()
def predictions(
    folder: RunFolder,
    machine: RunOptions,
    dataset: str | None,
    domain: int,
    split: str,
    average: str | None = None,
) -> Iterator[list[Any]]:
    """The names of columns, then a row for each image of a split.

    These are its position in the domain, its file where it has one, its label, the predicted class
    and the probability of each. Where labels are not classes, a label and a number for each output.

    Args:
        folder: of a finished run with its weights.
        machine: where the data lies and what computes.
        dataset: see `read_spec`.
        domain: its number.
        split: "in" or "out".
        average: see `load_model`.

    Raises:
        UserError: see `rebuild` and `load_trained_weights`; or there is no such domain.
    """
    experiment = rebuild(folder, machine, dataset)
    load_trained_weights(experiment, folder, average)
    if not 0 <= domain < len(experiment.domains):
        raise UserError(
            f"domain is {domain}: {experiment.spec.dataset_label} has the domains 0 to "
            f"{len(experiment.domains) - 1}",
            "domain",
        )
    chosen, own = experiment.splits[domain], experiment.domains[domain]
    indices = chosen.inside if split == "in" else chosen.out
    labels, names = experiment.label_type, list(experiment.dataset.class_names)
    of_labels = ["label"] if labels.has_classes else [f"label({name})" for name in names]
    yield [
        "position",
        *(["file"] if own.files else []),
        *of_labels,
        *predicted_columns(labels, names),
    ]
    positions, predict = iter(indices), experiment.algorithm.eval().predictor()
    for x, y in experiment.batches(domain, indices):
        with experiment.precision():
            scores = _probabilities(experiment.spec, predict(x).float())
        for target, found in zip(y, scores):
            index = next(positions)
            truth = [names[int(target)]] if labels.has_classes else target.reshape(-1).tolist()
            place = map(str, own.files[index : index + 1])
            yield [index, *place, *truth, *predicted_cells(labels, names, found)]


def predicted_columns(labels: LabelType, names: Sequence[str]) -> list[str]:
    """The names of `predicted_cells`."""
    if labels.kind == "regression":
        return list(names)
    return [*(["class"] if labels.has_classes else []), *(f"p({name})" for name in names)]


def predicted_cells(
    labels: LabelType, names: Sequence[str], scores: torch.Tensor
) -> list[str | float]:
    """The class, if labels are classes, and the probability of each; or the predicted numbers.

    Args:
        labels: their type.
        names: of the classes.
        scores: (C,) of one sample, as `Model.probabilities` returns them.
    """
    if labels.kind == "regression":
        return [float(f"{value:.6g}") for value in scores.tolist()]
    first = [names[int(scores.argmax())]] if labels.has_classes else []
    return [*first, *(round(value, 4) for value in scores.tolist())]


def save_predictions(experiment: Experiment, folder: RunFolder) -> None:
    """Writes what the algorithm predicts for every split of every domain into the run's folder.

    The images are not augmented, and the batches are those of an evaluation.

    Args:
        experiment: with its final weights; in training mode afterwards.
        folder: the run's.

    Raises:
        UserError: an image cannot be read.
    """
    spec = experiment.spec
    facts = {
        "run_id": spec.run_id,
        "step": spec.steps - 1,
        "classes": experiment.dataset.class_names,
        "domains": experiment.domain_names,
    }
    if spec.labels != "classes":
        facts |= {"labels": spec.labels, "label_kind": label_type(spec.labels).kind}
    splits = splits_to_evaluate(experiment.splits, spec.test_envs, everything=True)
    experiment.algorithm.eval()
    try:
        write_predictions(
            folder.predictions, facts, (_predicted(experiment, split) for split in splits)
        )
    finally:
        experiment.algorithm.train()


@torch.no_grad()
def _predicted(experiment: Experiment, split: EvaluationSplit) -> Predicted:
    domain, predict = experiment.domains[split.domain], experiment.algorithm.predictor()
    labels, logits = [], []
    groups: list[str] = []
    for batch in experiment.batches(split.domain, split.indices):
        x, y = batch
        with experiment.precision():
            logits.append(predict(x).float().cpu())
        labels.append(y.cpu())
        of_batch = (batch.extras or {}).get(experiment.dataset.group, [])
        groups += map(str, np.asarray(mapped(torch.Tensor.cpu, of_batch)))
    return Predicted(
        split.domain,
        split.name,
        [
            _name(domain.files[i], experiment.data_dir) if domain.files else str(i)
            for i in split.indices
        ],
        torch.cat(labels).numpy(),
        torch.cat(logits).numpy(),
        groups or None,
    )


def _name(file: Path, data_dir: str) -> str:
    return (file.relative_to(data_dir) if file.is_relative_to(data_dir) else file).as_posix()


def pictures(
    folder: RunFolder, data_dir: str, domain: int, positions: Sequence[int]
) -> list[Image.Image]:
    """Images of a domain as a run sees them; nothing is downloaded.

    Args:
        folder: of a finished run on small images; what a dataset draws may be the run's own.
        data_dir: the data folder.
        domain: its number.
        positions: of the images.

    Raises:
        UserError: the data is not there, or its inputs are no pictures.
    """
    spec = read_spec(folder)
    cls = get_dataset_class(spec.dataset, spec)
    info = cls.info
    if info is None or not cls.small_images or spec.features:
        raise UserError(f"{spec.dataset} has no small images")
    if not Path(data_dir, info.folder).is_dir():
        raise UserError(f"{spec.dataset} is not in {data_dir!r}")
    with global_sources_kept():
        chosen = domains_of(dataset_of(spec, data_dir), label_type(spec.labels))[domain]
    ((x, _),) = chosen.batches([Draw(torch.tensor(positions, dtype=torch.long))])
    return [_picture(each) for each in (255 * x.clamp(0, 1)).byte().cpu().numpy()]


def _picture(pixels: np.ndarray) -> Image.Image:
    """(C, H, W) uint8, of one channel (grey), two (red and green) or three."""
    channels = len(pixels)
    if channels > 3 or pixels.ndim != 3:
        raise UserError(f"an input of shape {pixels.shape} is no picture")
    if channels == 1:
        return Image.fromarray(pixels[0])
    nothing = np.zeros((3 - channels, *pixels.shape[1:]), np.uint8)
    return Image.fromarray(np.concatenate([pixels, nothing]).transpose(1, 2, 0).copy())
