"""The numbers that papers print, and how they were made. One CSV file a table, in `tables/`.

`results/published` in the repository is a link to that folder. A value is called what `domainbed
collect --format csv` calls it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed.config.protocols import get_protocol
from domainbed.errors import UserError, did_you_mean
from domainbed.reporting.section import Section

TABLES = Path(__file__).parent / "tables"
_CHOSEN = pd.read_csv(
    TABLES / "chosen_hparams.csv", index_col=["source", "algorithm", "dataset"], dtype=str
).sort_index()


CELL = ["selection", "table", "dataset", "algorithm", "domain"]
"""The columns that say which cell of the tables a number is, as in `reporting.to_frame`."""


@dataclass(frozen=True)
class Source:
    """A paper with tables, and the conditions under which its numbers were made.

    Attributes:
        name: for the command line.
        title: authors and title.
        url: where it can be read.
        files: in `TABLES`; of each the values of columns that are the same in all its rows.
        protocol: the named protocol that does as its authors did.
        foremost: the baseline, and the algorithm that does best in it.
        trials, draws: how many trials and hparams seeds; of a single draw the authors chose
            hyper-parameters for each dataset, see `fixed`.
        steps: updates in each run, where the protocol does not say.
        backbone: of datasets of photographs.
        fields: further fields of its runs.
        intervals: of records, by dataset, where they are not the protocol's.
    """

    name: str
    title: str
    url: str
    files: Mapping[str, Mapping[str, str]]
    protocol: str
    foremost: tuple[str, ...]
    trials: int = 3
    draws: int = 20
    steps: int = 5001
    backbone: str = "ResNet-50"
    fields: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, int] = field(default_factory=dict)

    def fixed(self, algorithm: str, dataset: str) -> dict[str, Any]:
        """The hyper-parameters that are not drawn in its runs, the backbone included."""
        backbone = {} if self.backbone == Source.backbone else {"backbone": self.backbone}
        key = (self.name, algorithm, dataset)
        own = _CHOSEN.loc[key].dropna() if key in _CHOSEN.index else {}
        return {**backbone, **{name: float(value) for name, value in own.items()}}


_DOMAINS = {"table": "dataset"}
_AVERAGES = {"table": "averages", "domain": "Avg"}
_RANKS = {"selection": "oracle", "table": "averages", "dataset": "Avg", "domain": "Mean rank"}

SOURCES = {
    source.name: source
    for source in (
        Source(
            "domainbed-2020",
            'Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization"',
            "https://arxiv.org/abs/2007.01434",
            {"domainbed_2020_per_domain.csv": _DOMAINS, "domainbed_2020_averages.csv": _AVERAGES},
            protocol="domainbed-2020",
            foremost=("ERM", "CORAL"),
        ),
        Source(
            "fishr-2022",
            'Ramé, Dancette and Cord, "Fishr", ICML 2022',
            "https://arxiv.org/abs/2109.02934",
            {"fishr_2022_averages.csv": _AVERAGES, "fishr_2022_oracle_ranks.csv": _RANKS},
            protocol="fishr-2022",
            foremost=("ERM", "Fishr"),
        ),
        Source(
            "miro-2022",
            'Cha et al., "Domain Generalization by Mutual-Information Regularization", ECCV 2022',
            "https://arxiv.org/abs/2203.10789",
            {"miro_2022_averages.csv": _AVERAGES},
            protocol="swad-2021",
            foremost=("MIRO",),
            draws=1,
        ),
        Source(
            "miro-2022-swad",
            'Cha et al., "MIRO", with SWAD',
            "https://arxiv.org/abs/2203.10789",
            {"miro_2022_swad_averages.csv": _AVERAGES},
            protocol="swad-2021",
            foremost=("MIRO + SWAD",),
            draws=1,
            fields={"averages": ["swad"], "swad_rule": "authors"},
            intervals={"VLCS": 50, "DomainNet": 500},
        ),
        Source(
            "miro-2022-swag",
            'Cha et al., "MIRO", with SWAD, from RegNetY-16GF as SWAG pretrained it',
            "https://github.com/kakaobrain/miro",
            {"miro_2022_swag_averages.csv": _AVERAGES},
            protocol="swad-2021",
            foremost=("MIRO + SWAD",),
            draws=1,
            backbone="timm:regnety_160.swag_lc_in1k",
            fields={"averages": ["swad"], "swad_rule": "authors"},
            intervals={"VLCS": 50, "DomainNet": 500},
        ),
        Source(
            "miro-2022-clip",
            'Cha et al., "MIRO" from CLIP\'s ViT-B/16',
            "https://github.com/kakaobrain/miro/issues/6",
            {"miro_2022_clip_averages.csv": _AVERAGES},
            protocol="swad-2021",
            foremost=("ERM", "MIRO"),
            draws=1,
            backbone="open_clip:ViT-B-16.openai",
        ),
        Source(
            "sagm-2023",
            'Wang et al., "Sharpness-Aware Gradient Matching", CVPR 2023: one seed of PACS',
            "https://github.com/Wang-pengfei/SAGM",
            {"sagm_2023_pacs.csv": _DOMAINS},
            protocol="swad-2021",
            foremost=("SAGM",),
            trials=1,
            draws=1,
            intervals={"PACS": 100},
        ),
    )
}


def steps_of(source: Source, dataset: str) -> int:
    """How many updates a run on a dataset has."""
    return get_protocol(source.protocol).steps.get(dataset, source.steps)


def get_source(name: str) -> Source:
    """The source called `name`.

    Raises:
        UserError: there is no such source.
    """
    if name not in SOURCES:
        raise UserError(
            f"unknown paper {name!r}.{did_you_mean(name, SOURCES)} Known: {', '.join(SOURCES)}"
        )
    return SOURCES[name]


@cache
def published_values(source: str) -> pd.DataFrame:
    """All numbers of a source, in the order of its files, one row each.

    Columns: `source`, a name in `SOURCES`; `selection`, the short name of a selection method;
    `table`, "dataset" or "averages"; `dataset`, or "Avg" for the mean over the paper's datasets;
    `algorithm`; `domain`, the name of the test domain, "Avg" or "Mean rank"; `mean` and `std_err`
    in percent, as printed (of the domain "Mean rank": a rank; NaN where the paper prints none).

    Raises:
        UserError: there is no such source.
    """
    files = get_source(source).files
    frames = [pd.read_csv(TABLES / file).assign(**same) for file, same in files.items()]
    columns = ["source", *CELL, "mean", "std_err"]
    return pd.concat(frames, ignore_index=True).assign(source=source).reindex(columns=columns)


def find_values(
    sources: Iterable[str] | None = None,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The rows of `published_values` that are asked for; None asks for all.

    Raises:
        UserError: a name is unknown, or no number matches everything that is asked for.
    """
    found = pd.concat([published_values(name) for name in sources or SOURCES], ignore_index=True)
    asked = {"selection": selection, "dataset": datasets, "algorithm": algorithms}
    for column, names in asked.items():
        known = list(found[column].unique())
        for name in names or ():
            if name not in known:
                raise UserError(
                    f"no published number of {column} {name!r} with the rest of what is asked for."
                    f"{did_you_mean(name, known)} Known: {', '.join(known)}"
                )
        if names is not None:
            found = found[found[column].isin(names)]
    return found


def published_sections(values: pd.DataFrame) -> list[Section]:
    """The rows of `find_values` as one table per dataset, selection method and paper."""
    is_dataset = values["table"] == "dataset"
    subject = ("Dataset: " + values["dataset"]).where(is_dataset, "Averages")
    column = values["domain"].where(is_dataset | (values["domain"] != "Avg"), values["dataset"])
    error = " +/- " + values["std_err"].astype(str)
    text = values["mean"].astype(str) + error.where(values["std_err"].notna(), "")
    sections = []
    cells = values.assign(subject=subject, column=column, text=text)
    for (name, method, source), of in cells.groupby(["subject", "selection", "source"], sort=False):
        wide = of.pivot(index="algorithm", columns="column", values="text").fillna("")
        wide = wide.reindex(index=of["algorithm"].unique(), columns=of["column"].unique())
        rows = [[algorithm, *texts] for algorithm, *texts in wide.itertuples(name=None)]
        title = f"{name}, model selection method: {method}, from {source}"
        frame = of[values.columns]
        sections.append(Section("published", title, ["Algorithm", *wide], rows, [], frame))
    return sections


def irm_colored_mnist_values() -> pd.DataFrame:
    """Colored MNIST in the setup of IRM (Ramé et al. 2022, table 2).

    Columns: `algorithm`, `label_flip`, and for `train_acc`, `test_acc` and `gray_test_acc` the mean
    over restarts in percent, with the standard deviation as …_std.
    """
    return pd.read_csv(TABLES / "fishr_2022_irm_colored_mnist.csv")
