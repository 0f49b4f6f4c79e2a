"""The algorithms, one file per paper. A new one: its file, and its import here.

The order of the imports is the order of every list of algorithms.
"""

# ruff: noqa: I001

from domainbed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    Stage,
    declared_options,
    declared_space,
    register_algorithm,
)
from domainbed.algorithms.optimizers import LR_SCHEDULES, OPTIMIZERS
from domainbed.algorithms.erm import ERM, ForwardPass, PooledAlgorithm
from domainbed.algorithms.coral import CORAL
from domainbed.algorithms.irm import IRM
from domainbed.algorithms.vrex import VREx
from domainbed.algorithms.fish import Fish
from domainbed.algorithms.add_ons import AddOn, added
from domainbed.algorithms.fishr import Fishr, FishrAddOn
from domainbed.algorithms.dann import DANN
from domainbed.algorithms.erm_plus_plus import ERMPlusPlus
from domainbed.algorithms.group_dro import GroupDRO
from domainbed.algorithms.mixup import Mixup
from domainbed.algorithms.mldg import MLDG
from domainbed.algorithms.mmd import MMD
from domainbed.algorithms.cdann import CDANN
from domainbed.algorithms.mtl import MTL
from domainbed.algorithms.sagnet import SagNet
from domainbed.algorithms.arm import ARM
from domainbed.algorithms.rsc import RSC
from domainbed.algorithms.sd import SD
from domainbed.algorithms.andmask import ANDMask
from domainbed.algorithms.sandmask import SANDMask
from domainbed.algorithms.iga import IGA
from domainbed.algorithms.selfreg import SelfReg
from domainbed.algorithms.trm import TRM
from domainbed.algorithms.ib import IB_ERM, IB_IRM
from domainbed.algorithms.cad import CAD, CondCAD
from domainbed.algorithms.transfer import Transfer
from domainbed.algorithms.causirl import CausIRL_CORAL, CausIRL_MMD
from domainbed.algorithms.eqrm import EQRM
from domainbed.algorithms.rdm import RDM
from domainbed.algorithms.adrmx import ADRMX
from domainbed.algorithms.urm import URM
from domainbed.algorithms.t3a import T3A
from domainbed.algorithms.sam import ASAM, GSAM, SAGM, SAM
from domainbed.algorithms.gga import GGA, GGA_L
from domainbed.algorithms.birm import BIRM
from domainbed.algorithms.irm_games import IRMGames
from domainbed.algorithms.miro import MIRO
from domainbed.algorithms.ridg import RIDG
from domainbed.algorithms.pcl import PCL
from domainbed.algorithms.mixstyle import DSU, EFDMix, MixStyle
from domainbed.algorithms.fact import FACT
from domainbed.algorithms.lisa import LISA
from domainbed.algorithms.subpopulation import (
    CB,
    JTT,
    LDAM,
    BSoftmax,
    CVaRDRO,
    Focal,
    GroupDROAttributes,
    LfF,
    ReSample,
    ReWeight,
    SqrtReWeight,
)
from domainbed.algorithms.foreign import adapt
from domainbed.algorithms.fitted import DFR, KNN, FittedOnce, LinearProbe, NearestMean, ZeroShot
from domainbed.algorithms import forks
from domainbed.core.forks import on_fork


ADD_ONS: dict[str, type[AddOn]] = {
    "Fishr": FishrAddOn,
    **{cls.__name__: cls for cls in (SAM, ASAM, GSAM, SAGM, MixStyle, EFDMix, DSU)},
}
"""By the name before the `+`."""


KINDS: dict[str, tuple[str, ...]] = {
    "pooled risk": ("ERM", "ERMPlusPlus"),
    "risks of domains": (
        *("IRM", "VREx", "GroupDRO", "TRM", "IB_ERM", "IB_IRM", "Transfer", "EQRM", "RDM"),
        *("BIRM", "IRMGames"),
    ),
    "gradients": (
        *("Fish", "Fishr", "MLDG", "ANDMask", "SANDMask", "IGA", "SAM", "ASAM", "GSAM", "SAGM"),
        *("GGA", "GGA_L"),
    ),
    "features alike": (
        *("CORAL", "DANN", "MMD", "CDANN", "CAD", "CondCAD", "CausIRL_CORAL", "CausIRL_MMD"),
        *("ADRMX", "URM"),
    ),
    "regularisers": ("RSC", "SD", "SelfReg", "MIRO", "RIDG", "PCL"),
    "mixing": ("Mixup", "SagNet", "MixStyle", "EFDMix", "DSU", "FACT", "LISA"),
    "adaptation": ("MTL", "ARM", "T3A"),
    "subpopulations": (
        *("ReWeight", "SqrtReWeight", "CB", "ReSample", "Focal", "LDAM", "BSoftmax"),
        *("GroupDROAttributes", "CVaRDRO", "LfF", "JTT", "DFR"),
    ),
    "fitted once": ("LinearProbe", "NearestMean", "KNN", "ZeroShot"),
}
"""What the algorithms do, for lists of them."""


def get_algorithm_class(name: str) -> type[Algorithm]:
    """The class registered under `name`, or for `SAM+NAME` that of NAME with SAM added.

    Raises:
        UserError: no such algorithm; the message suggests the nearest name and lists all.
    """
    prefix, plus, base = name.partition("+")
    if plus and prefix in ADD_ONS and name not in ALGORITHMS:
        # Classes can be hashed; mypy looks at what nn.Module says of its instances.
        return added(prefix, ADD_ONS[prefix], get_algorithm_class(base), base)  # type: ignore[arg-type]
    return ALGORITHMS[name]


on_fork(forks.register)

__all__ = [
    "ADD_ONS",
    "ADRMX",
    "ALGORITHMS",
    "ARM",
    "ASAM",
    "BIRM",
    "CAD",
    "CB",
    "CDANN",
    "CORAL",
    "DANN",
    "DFR",
    "DSU",
    "EQRM",
    "ERM",
    "FACT",
    "GGA",
    "GGA_L",
    "GSAM",
    "IB_ERM",
    "IB_IRM",
    "IGA",
    "IRM",
    "JTT",
    "KINDS",
    "KNN",
    "LDAM",
    "LISA",
    "LR_SCHEDULES",
    "MIRO",
    "MLDG",
    "MMD",
    "MTL",
    "OPTIMIZERS",
    "PCL",
    "RDM",
    "RIDG",
    "RSC",
    "SAGM",
    "SAM",
    "SD",
    "T3A",
    "TRM",
    "URM",
    "ANDMask",
    "Algorithm",
    "BSoftmax",
    "CVaRDRO",
    "CausIRL_CORAL",
    "CausIRL_MMD",
    "CondCAD",
    "EFDMix",
    "ERMPlusPlus",
    "Fish",
    "Fishr",
    "FittedOnce",
    "Focal",
    "ForwardPass",
    "GroupDRO",
    "GroupDROAttributes",
    "IRMGames",
    "LfF",
    "LinearProbe",
    "MixStyle",
    "Mixup",
    "NearestMean",
    "PooledAlgorithm",
    "ReSample",
    "ReWeight",
    "SANDMask",
    "SagNet",
    "SelfReg",
    "SqrtReWeight",
    "Stage",
    "Transfer",
    "VREx",
    "ZeroShot",
    "adapt",
    "declared_options",
    "declared_space",
    "get_algorithm_class",
    "register_algorithm",
]
