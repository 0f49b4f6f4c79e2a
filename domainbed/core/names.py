"""Names and orders that tables, datasets and plans share; any module may import them."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

DOMAINBED_ALGORITHMS: tuple[str, ...] = (
    *("ERM", "CORAL", "IRM", "VREx", "Fish", "Fishr", "DANN"),
    *("ERMPlusPlus", "GroupDRO", "Mixup", "MLDG", "MMD", "CDANN", "MTL", "SagNet", "ARM", "RSC"),
    *("SD", "ANDMask", "SANDMask", "IGA", "SelfReg", "TRM", "IB_ERM", "IB_IRM", "CAD", "CondCAD"),
    *("Transfer", "CausIRL_CORAL", "CausIRL_MMD", "EQRM", "RDM", "ADRMX", "URM"),
)
"""Those that DomainBed has, too; the first seven lead the tables."""

BASELINES: tuple[str, ...] = ("T3A", "LinearProbe", "NearestMean", "KNN", "ZeroShot")
"""Those that a sweep runs only where it names them."""

# Those that somebody from outside this project has checked; all others are provisional.
CHECKED = frozenset({*DOMAINBED_ALGORITHMS, "LinearProbe", "NearestMean", "KNN", "ZeroShot"})

# Forward and backward passes of the network, over all images of an update, with three domains. A
# forward pass is a third; on average over the kinds of updates, without further networks such as
# discriminators. Not of GGA, JTT and IRMGames, which depend on the length of training or on turns,
# nor of what is fitted.
PASSES: dict[str, float] = {
    **dict.fromkeys(DOMAINBED_ALGORITHMS, 1.0),
    **{"DANN": 0.67, "CDANN": 0.67, "MLDG": 0.67, "SagNet": 2.33, "IGA": 3.0},
    **{"Transfer": 2.33, "ADRMX": 1.11},
    **dict.fromkeys(("SAM", "ASAM", "GSAM", "SAGM", "LfF"), 2.0),
    **dict.fromkeys(("T3A", "GGA_L", "BIRM", "RIDG", "PCL", "MixStyle", "EFDMix", "DSU"), 1.0),
    **{"MIRO": 1.33, "FACT": 2.67},
    **dict.fromkeys(("LISA", "ReWeight", "SqrtReWeight", "CB", "ReSample", "Focal"), 1.0),
    **dict.fromkeys(("LDAM", "BSoftmax", "GroupDROAttributes", "CVaRDRO"), 1.0),
}

ALGORITHM_ORDER = (*DOMAINBED_ALGORITHMS, *BASELINES)
"""The order of rows in the results tables."""

_COLORED = ("+90%", "+80%", "-90%")
_ROTATED = ("0", "15", "30", "45", "60", "75")
SPAWRIOUS = tuple(
    f"Spawrious{kind}_{level}" for kind in ("O2O", "M2M") for level in ("easy", "medium", "hard")
)
"""The six sets that are made of the images of Spawrious."""
SUBPOPULATIONS = ("Waterbirds", "CelebA", "MetaShift")
"""Those with groups of label and attribute, and one domain to train on."""


DATASET_DOMAINS: dict[str, tuple[str, ...]] = {
    "ColoredMNIST": _COLORED,
    "RotatedMNIST": _ROTATED,
    "VLCS": ("C", "L", "S", "V"),
    "PACS": ("A", "C", "P", "S"),
    "OfficeHome": ("A", "C", "P", "R"),
    "TerraIncognita": ("L100", "L38", "L43", "L46"),
    "DomainNet": ("clip", "info", "paint", "quick", "real", "sketch"),
    "SVIRO": (
        *("aclass", "escape", "hilux", "i3", "lexus"),
        *("tesla", "tiguan", "tucson", "x5", "zoe"),
    ),
    "WILDSCamelyon": tuple(f"hospital_{number}" for number in range(5)),
    "WILDSFMoW": tuple(f"region_{number}" for number in range(6)),
    **dict.fromkeys(SPAWRIOUS, ("Test", "SC_group_1", "SC_group_2")),
    **dict.fromkeys(SUBPOPULATIONS, ("train", "test")),
    "NICOpp": ("autumn", "dim", "grass", "outdoor", "rock", "water"),
    "ColoredDigits": _COLORED,
    "RotatedDigits": _ROTATED,
    **dict.fromkeys(
        ("Penguins", "PenguinsMass", "PenguinsSpecies"), ("Biscoe", "Dream", "Torgersen")
    ),
    "Debug28": ("0", "1", "2"),
    "Debug224": ("0", "1", "2"),
}
"""Each dataset's domains, numbered by their position; the keys are the order of the tables."""

NUM_CLASSES: dict[str, int] = {
    **{"ColoredMNIST": 2, "RotatedMNIST": 10, "VLCS": 5, "PACS": 7, "OfficeHome": 65},
    **{"TerraIncognita": 10, "DomainNet": 345, "SVIRO": 7, "WILDSCamelyon": 2, "WILDSFMoW": 62},
    **dict.fromkeys(SPAWRIOUS, 4),
    **dict.fromkeys(SUBPOPULATIONS, 2),
    "NICOpp": 60,
    **{"ColoredDigits": 2, "RotatedDigits": 10, "Penguins": 2, "PenguinsSpecies": 3},
    **{"Debug28": 2, "Debug224": 2},
}
"""Of the datasets above; a test compares it with what they declare."""

TEST_DOMAINS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(SPAWRIOUS, (0,)),
    **dict.fromkeys(SUBPOPULATIONS, (1,)),
}
"""The domains that a dataset is evaluated on, where that is not all of them."""


_YEAR = re.compile(r"\b((?:19|20)\d\d)\b(?!\.\d)|arXiv (\d\d)")


def order_algorithms(seen: Iterable[str]) -> list[str]:
    """The names of `seen`, once each: DomainBed's in table order, then the rest by name.

    An algorithm with averaged weights, or rerun, follows the algorithm itself.
    """
    names = list(dict.fromkeys(seen))
    trained = dict.fromkeys(map(trained_algorithm, names))
    order = [name for name in ALGORITHM_ORDER if name in trained] + sorted(trained)
    places = {name: order.index(trained_algorithm(name)) for name in names}
    return sorted(names, key=lambda name: (places[name], name != trained_algorithm(name)))


_RERUN = " (rerun: "
_WITH = " + "


def averaged_algorithm(algorithm: str, average: str) -> str:
    """What tables call an algorithm with averaged weights.

    Examples:
        >>> averaged_algorithm("ERM", "SWAD")
        'ERM + SWAD'
    """
    return algorithm + _WITH + average


def rerun_algorithm(algorithm: str, method: str) -> str:
    """What tables call an algorithm in new trials of what a selection method chose.

    Examples:
        >>> rerun_algorithm("ERM", "oracle")
        'ERM (rerun: oracle)'
    """
    return f"{algorithm}{_RERUN}{method})"


def trained_algorithm(name: str) -> str:
    """The algorithm that was trained, of a name with or without averaged weights, rerun or not."""
    return name.partition(_RERUN)[0].partition(_WITH)[0]


def average_in(name: str) -> str:
    """What tables call the average in a name such as "ERM + SWAD"; "" where there is none."""
    return name.partition(_RERUN)[0].partition(_WITH)[2]


def is_provisional(name: str) -> bool:
    """Whether nobody from outside has checked a method yet, or a part of it.

    Example:
        >>> is_provisional("Fishr+CORAL"), is_provisional("SAM+CORAL")
        (False, True)
    """
    return not CHECKED.issuperset(trained_algorithm(name).split("+"))


def passes(name: str) -> float:
    """`PASSES` of a method, also of a composed one such as SAM+Fishr; NaN where not known."""
    return math.prod(PASSES.get(part, math.nan) for part in trained_algorithm(name).split("+"))


def order_datasets(seen: Iterable[str]) -> list[str]:
    """The names of `seen`, once each: the known ones in table order, then the rest sorted."""
    names = set(seen)
    return [name for name in DATASET_DOMAINS if name in names] + sorted(
        names - set(DATASET_DOMAINS)
    )


_VARIANT = re.compile(r" \[(own images|data [0-9a-f]{6})\]$")


def variant_label(label: str, variant: str) -> str:
    """What tables call one of several datasets of a name; `variant` is "" for the usual one.

    Examples:
        >>> variant_label("pets", "data 3fa9c1")
        'pets [data 3fa9c1]'
    """
    return f"{label} [{variant}]" if variant else label


MANIFESTS = (".csv", ".tsv", ".jsonl")
"""The endings of files that list images, in lower case."""


SAMPLES = ("table:", "arrays:")
"""How the names of datasets begin whose samples lie in one file."""


def is_manifest(name: str) -> bool:
    """Whether a dataset's name is that of a file which lists images."""
    return name.startswith("manifest:") or (
        name.lower().endswith(MANIFESTS) and not name.startswith(SAMPLES)
    )


def dataset_label(name: str) -> str:
    """The name of a dataset in records, seeds and tables, free of any machine's paths.

    `folder:PATH` is named after its last folder, a YAML file, a manifest, a table or arrays after
    the file, and one of several datasets of a name after that.
    """
    name = _VARIANT.sub("", name)
    if name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser().resolve().name
    if is_manifest(name) or name.startswith(SAMPLES) or name.endswith((".yaml", ".yml")):
        return Path(re.sub("^(manifest|table|arrays):", "", name)).stem
    return name


def describe_run(run: Mapping[str, Any]) -> str:
    """One line for people, of a run's fields as JSON values."""
    domains = "+".join(map(str, run["test_envs"]))
    return (
        f"{run['algorithm']} on {run['dataset']}, test domain {domains}, "
        f"hparams seed {run['hparams_seed']}, trial {run['trial_seed']}"
    )


# ---- what a record measures, as DomainBed calls it: env{domain}_{split}_{metric} ----

_KEY = re.compile(r"env(\d+)_(in|out|uda)_(\w+)", re.ASCII)


AVERAGES = {"ema": "EMA", "sma": "SMA", "swad": "SWAD", "wise": "WiSE"}
"""Averages of the weights that are measured besides the last weights, and their names in tables."""

AVERAGES_BY_TITLE = {title: name for name, title in AVERAGES.items()}

FULL_DATA = "fd_"
"""Prefix of keys in a stage that trains on all images of the training domains."""


def key_suffix(metric: str) -> str:
    """What keys call a metric: "acc" for accuracy, and all others as tables do."""
    return "acc" if metric == "accuracy" else metric


def record_key(domain: int, split: str, metric: str, full_data: bool = False) -> str:
    """The key of a metric's value over a domain's split.

    Args:
        domain: the domain's number.
        split: "in", "out", or "uda", the images that domain adaptation may train on.
        metric: "accuracy", "loss", …
        full_data: whether no domain is cut, so that "in" is all of it.

    Examples:
        >>> record_key(0, "in", "accuracy")
        'env0_in_acc'
    """
    key = f"env{domain}_{split}_{key_suffix(metric)}"
    return FULL_DATA + key if full_data else key


def parse_record_key(key: str) -> tuple[int, str, str] | None:
    """Domain, split and metric of a key; None for a key that measures no split.

    Examples:
        >>> parse_record_key("env2_out_loss")
        (2, 'out', 'loss')
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    domain, split, suffix = match.groups()
    return int(domain), split, "accuracy" if suffix == "acc" else suffix


def average_key(average: str, key: str) -> str:
    """The key for an average of the weights, given the key for the last weights.

    Examples:
        >>> average_key("swad", "env0_in_acc")
        'swad_env0_in_acc'
    """
    return f"{average}_{key}"


@lru_cache(maxsize=4096)  # asked of each key of each record, and there are few keys
def parse_average_key(key: str) -> tuple[str, str] | None:
    """The average that a key belongs to, and the key for the last weights; None for other keys.

    Examples:
        >>> parse_average_key("swad_env0_in_acc")
        ('swad', 'env0_in_acc')
    """
    average, _, of_last = key.partition("_")
    return (average, of_last) if average in AVERAGES and parse_record_key(of_last) else None


def year_of(paper: str) -> str:
    """The year in a citation, or that of its arXiv number; "" if there is none."""
    year = _YEAR.search(paper)
    return (year[1] or f"20{year[2]}") if year else ""
