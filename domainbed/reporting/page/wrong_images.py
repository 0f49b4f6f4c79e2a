"""The part of the page on images that both, or only one, of two algorithms get wrong."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError
from domainbed.reporting.misclassified import ALL, Misclassified, error_sections, misclassified
from domainbed.reporting.page.html import Part, Thumbnail
from domainbed.reporting.page.tables import from_section
from domainbed.reporting.tables import AVERAGE, Report
from domainbed.runs.folder import RunFolder

SIDE = 96
"""Pixels of the longer side of a picture."""

PER_LIST = 6
"""Pictures in a list: images of one test domain that the same algorithms get wrong."""

ReadImages = Callable[[str, int, Sequence[str]], "Sequence[Image.Image | None]"]
"""From a run's folder, a domain and the names of images in its predictions to the images.

None for each that cannot be read.
"""


def wrong_images(report: Report, baseline: str, read: ReadImages) -> Part:
    """Pictures and counts, for the first selection method.

    The algorithms are the baseline and, of the others, the one with the best average; of those
    whose runs keep their predictions.

    Args:
        report: made by `build_report`.
        baseline: an algorithm; another one is used if it keeps no predictions.
        read: reads the images that predictions name.
    """
    part = Part("wrong-images", "Wrongly predicted images", "")
    pair = _pair(report, baseline)
    if len(pair) < 2:
        why = "fewer than two algorithms keep their predictions: --save_predictions keeps them"
        return replace(part, missing=why)
    method, runs = report.methods[0], report.records.runs
    intro = (
        f"What {pair[0]} and {pair[1]} get wrong of the in-split of the test domains, by the runs "
        f"that {method.name} chooses: per list up to {PER_LIST} images, those first that are wrong "
        "in most trials, alternating between classes. `domainbed errors` lists all, of any "
        "algorithms."
    )
    galleries, tables, notes = [], [], []
    for dataset in order_datasets(runs["dataset"]):
        try:
            found = misclassified(report.records, pair, method, [dataset])
        except UserError as error:
            notes.append(f"{dataset}: {error}")
            continue
        title = f"{dataset}: how many images are wrong"  # each region of the page has its name
        tables.append(from_section(error_sections(found, top=0)[0]._replace(title=title)))
        for domain, title, thumbnails in _galleries(found, read):
            if thumbnails:
                galleries.append((f"{dataset}, {domain}: {title}", thumbnails))
            else:
                notes.append(f"{dataset}, {domain}: no pictures, its images cannot be read")
    if not tables:
        return replace(part, missing="; ".join(notes))
    notes = list(dict.fromkeys(notes))
    return replace(part, intro=intro, notes=notes, galleries=galleries, tables=tables)


def _pair(report: Report, baseline: str) -> list[str]:
    runs = report.records.runs
    keeps = [RunFolder(folder).predictions.is_file() for folder in runs["folder"]]
    names = order_algorithms(runs.loc[keeps, "algorithm"])
    averages = next(table for table in report.tables if table.dataset is None)
    place = [column.label for column in averages.columns].index(AVERAGE)
    means = {name: averages.unit.sign * (averages.rows[name][place].mean or 0.0) for name in names}
    return sorted(names, key=lambda name: (name != baseline, -means[name]))[:2]


def _galleries(
    found: Misclassified, read: ReadImages
) -> Iterator[tuple[str, str, list[Thumbnail]]]:
    """For each test domain the images that all algorithms, or only one, get wrong.

    Yields:
        the domain's name, who is wrong, and the pictures; none if the images cannot be read.
    """
    for (dataset, env), images in found.images.groupby(["dataset", "test_env"], sort=False):
        of_trial = ""
        if images["image"].str.isdigit().all():  # positions, of other images in other trials
            first = images["trial_seed"].min()
            images, of_trial = images[images["trial_seed"] == first], f" of trial {first}"
        for kind in (ALL, *found.algorithms):
            listed = _listed(images, kind)
            if listed.empty:
                continue
            names = listed["image"].head(3 * PER_LIST).tolist()  # some may not be readable
            folder = found.folders[dataset, env, listed["trial_seed"].iloc[0]]
            pairs = zip(read(folder, int(env), names), listed.to_dict("records"))
            readable = [(image, row) for image, row in pairs if image is not None]
            who = f"{' and '.join(found.algorithms)} are" if kind == ALL else f"only {kind} is"
            many = f"{len(listed):,} image{'s' * (len(listed) > 1)}"
            thumbnails = [_thumbnail(*each, found.algorithms) for each in readable[:PER_LIST]]
            yield images["domain"].iloc[0], f"{who} wrong ({many}{of_trial})", thumbnails


def _listed(images: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The images of a domain that these get wrong, those of most trials first, classes alternating.

    One row per image, of the last trial in which it is wrong: in how many trials it is (`times`),
    and of how many (`trials`).
    """
    keys = ["image", "label"]
    images = images.assign(trials=images.groupby(keys)["wrong"].transform("size"))
    wrong = images[images["wrong"] == kind]
    wrong = wrong.assign(times=wrong.groupby(keys)["wrong"].transform("size"))
    last = wrong.drop_duplicates(keys, keep="last")
    ordered = last.sort_values(["times", "image"], ascending=[False, True])
    turns = ordered.groupby(["times", "label"], sort=False).cumcount()
    by = ["times", "turn", "label"]
    return ordered.assign(turn=turns).sort_values(by, ascending=[False, True, True])


def _thumbnail(image: Image.Image, row: dict[str, str], algorithms: Sequence[str]) -> Thumbnail:
    """A picture of at most `SIDE` pixels a side; small images are enlarged without smoothing."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    if (factor := SIDE // max(small.size)) > 1:
        size = (factor * small.width, factor * small.height)
        small = small.resize(size, Image.Resampling.NEAREST)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80, optimize=True)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    said = [f"{name}: {row[f'predicted_{name}']}" for name in algorithms]
    trials = f"in {row['times']} of {row['trials']} trials"
    alternative = f"{row['image']}, of class {row['label']}; {', '.join(said)}; {trials}"
    return Thumbnail(source, alternative, [f"is {row['label']}", *said])


def files_below(
    data_dir: Path | str, folder: str, env: int, names: Sequence[str]
) -> list[Image.Image | None]:
    """Reads images that are files below a data folder, and no other file.

    The names are from a file of predictions, which may be anybody's.
    """
    return [_image(Path(data_dir), PurePosixPath(name)) for name in names]


def _image(data_dir: Path, name: PurePosixPath) -> Image.Image | None:
    file = Path(data_dir, name)
    if ".." in name.parts or not file.is_relative_to(data_dir):
        return None
    try:
        with Image.open(file) as image:
            image.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
