"""List the images of the test domains that all, or only one, of several algorithms get wrong.

The runs are those that the selection method chooses, trained with --save_predictions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from domainbed.cli.choices import add_folders
from domainbed.cli.common import add_flag
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.reporting.misclassified import Misclassified

TOP = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed errors`."""
    add_folders(parser)
    add_flag(parser, "--algorithms", nargs="+", required=True, metavar="NAME", help="two or more")
    add_flag(parser, "--selection", metavar="NAME", help="the selection method, by short name (the "
             "first that the sweep was planned for)")  # fmt: skip
    add_flag(parser, "--datasets", nargs="+", metavar="NAME", help="only these datasets")
    add_flag(parser, "--top", type=int, default=TOP, metavar="N",
             help=f"only the first N images of each list ({TOP})")  # fmt: skip
    add_flag(parser, "--format", choices=("text", "csv"), default="text",
             help="text (default), or csv: every image, whoever is wrong")  # fmt: skip
    add_flag(parser, "--output", metavar="FILE", help="write there instead of to the terminal")


def main(args: argparse.Namespace) -> int:
    """Prints the lists, or writes them to a file; returns the exit status.

    Raises:
        UserError: a folder or a name is wrong, or runs have no predictions.
    """
    if args.top < 1:
        raise UserError(f"--top {args.top} lists nothing: give a number from 1 on")
    from domainbed.cli.collect import show_progress, write_output
    from domainbed.reporting import load_records, planned_selection
    from domainbed.reporting.misclassified import misclassified
    from domainbed.selection import SELECTION_METHODS

    records = load_records(args.folders, progress=show_progress)
    planned = planned_selection(args.folders) or list(SELECTION_METHODS)
    method = SELECTION_METHODS[args.selection or planned[0]]
    found = misclassified(records, args.algorithms, method, args.datasets)
    if args.format == "csv":
        write_output(found.images.to_csv(index=False, lineterminator="\n"), args.output)
        return 0
    lines = [f"Model selection: {method.title}; images of the in-split of the test domain"]
    write_output("\n".join([*lines, *_text(found, args.top)]) + "\n", args.output)
    return 0


def _text(found: Misclassified, top: int) -> Iterator[str]:
    if found.earlier:
        yield (
            f"{found.earlier} of {found.runs} runs were chosen at an earlier step than the last, "
            "which the predictions are of: the tables' accuracies differ"
        )
    counts = found.counts()
    header = [_HEADINGS.get(name, f"only {name}") for name in counts.columns]
    rows = [[str(value) for value in row] for row in counts.to_numpy().tolist()]
    yield ""
    yield from text_table([header, *rows], right=range(3, len(header)))
    of_images = ["domain", "trial_seed", "image", "label"]
    predicted = [f"predicted_{name}" for name in found.algorithms]
    for kind in ("all", *found.algorithms):
        chosen = found.images[found.images["wrong"] == kind]
        for dataset, images in chosen.groupby("dataset", sort=False):
            shown = images[[*of_images, *predicted]].head(top).to_numpy().tolist()
            who = "all are" if kind == "all" else f"only {kind} is"
            part = f", the first {top} of {len(images)}" if len(images) > top else ""
            yield ""
            yield f"-------- {dataset}: {who} wrong{part}"
            head = ["domain", "trial", "image", "label", *found.algorithms]
            yield from text_table([head, *([str(value) for value in row] for row in shown)])


_HEADINGS = {
    **{name: name for name in ("dataset", "domain", "images")},
    **{"trial_seed": "trial", "none": "none wrong", "all": "all wrong", "some": "some wrong"},
}
