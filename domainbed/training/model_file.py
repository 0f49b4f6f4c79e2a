"""The file of a run's trained weights; its keys are DomainBed's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from domainbed.core.files import file_digest, write_text, written_aside
from domainbed.errors import UserError
from domainbed.networks.weights import load_plain
from domainbed.training.experiment import Experiment


def save_model(experiment: Experiment, file: Path, args: Mapping[str, Any]) -> None:
    """Writes the weights with what is needed to rebuild the algorithm, and their digest."""
    with written_aside(file) as aside:
        torch.save(
            {
                "args": dict(args),
                "model_input_shape": tuple(experiment.dataset.input_shape),
                "model_num_classes": experiment.dataset.num_classes,
                "model_num_domains": len(experiment.train_envs),
                "model_hparams": experiment.spec.hparams,
                "model_dict": experiment.algorithm.state_dict(),
                "model_classes": list(experiment.dataset.class_names),
                "model_reads_images": experiment.dataset.reads_images,
            },
            aside,
        )
        write_text(digest_file(file), file_digest(aside) + "\n")


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
    known = digest_file(file)
    if known.exists() and known.read_bytes().strip() != file_digest(file).encode():
        raise UserError(f"{file} is damaged (its digest is another): train the run again")
    try:
        content = load_plain(file)
        owner, _ = content["args"]["run_id"], content["model_dict"]
    except Exception as error:  # unpickling what is no model raises anything
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}): train the run again"
        ) from error
    if owner != run_id:
        raise UserError(f"{file} holds the weights of another run ({owner}): train the run again")
    return dict(content)


def digest_file(file: Path) -> Path:
    """Where the digest of `file` stands."""
    return file.with_name(f"{file.name}.sha256")
