"""The published table of hyper-parameters, written once more as plain data."""

from __future__ import annotations

import hashlib

import numpy as np

SMALL = ("ColoredMNIST", "RotatedMNIST", "ColoredDigits", "RotatedDigits", "Debug28")


def naive_seed_hash(*args):
    digest = hashlib.md5(str(args).encode("utf-8")).hexdigest()
    return int(digest, 16) % 2**31


def _log10(low, high):
    return lambda r: 10 ** r.uniform(low, high)


def _int_power(base, low, high):
    return lambda r: int(base ** r.uniform(low, high))


def _choice(*values):
    return lambda r: r.choice(list(values))


def _fixed(value):
    return lambda r: value


COMMON = {
    "data_augmentation": (True, _fixed(True)),
    "resnet18": (False, _fixed(False)),
    "resnet_dropout": (0.0, _choice(0.0, 0.1, 0.5)),
    "class_balanced": (False, _fixed(False)),
    "nonlinear_classifier": (False, _fixed(False)),
}
LR_SMALL, LR_OTHER = (1e-3, _log10(-4.5, -2.5)), (5e-5, _log10(-5, -3.5))
DECAY_SMALL, DECAY_OTHER = (0.0, _fixed(0.0)), (0.0, _log10(-6, -2))
EXTRA = {
    "ERM": {},
    **{name: {} for name in ("ReWeight", "SqrtReWeight", "ReSample", "BSoftmax")},
    "CB": {"cb_rest": (1e-4, _log10(-5, -2))},
    "Focal": {"focal_gamma": (1.0, _log10(-0.30103, 0.69897))},
    "LDAM": {"ldam_margin": (0.5, _log10(-1, -0.1)), "ldam_scale": (30.0, _choice(10.0, 30.0))},
    "GroupDROAttributes": {"groupdro_eta": (1e-2, _log10(-3, -1))},
    "CVaRDRO": {"cvar_alpha": (0.1, _log10(-2, 0))},
    "JTT": {
        "jtt_first": (0.5, lambda r: r.uniform(0.2, 0.8)),
        "jtt_lambda": (10.0, _log10(0, 2.5)),
    },
    "DFR": {"dfr_c": (1.0, _choice(1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01))},
    "LfF": {"lff_q": (0.7, lambda r: r.uniform(0.05, 0.95))},
    "MIRO": {"miro_lambda": (0.1, _choice(0.001, 0.01, 0.1, 1.0))},
    "RIDG": {"ridg_lambda": (0.01, _log10(-2, -1)), "ridg_momentum": (1e-3, _log10(-4, -1))},
    **{
        name: {"mix_alpha": (0.1, _choice(0.1, 0.2, 0.3))} for name in ("MixStyle", "EFDMix", "DSU")
    },
    "LISA": {"lisa_alpha": (2.0, _log10(-1, 1)), "lisa_p": (0.5, lambda r: r.uniform(0, 1))},
    "SAM": {"sam_rho": (0.05, _choice(0.01, 0.02, 0.05, 0.1))},
    "ASAM": {"sam_rho": (0.5, _choice(0.1, 0.2, 0.5, 1.0))},
    "GSAM": {
        "sam_rho": (0.05, _choice(0.01, 0.02, 0.05, 0.1)),
        "gsam_alpha": (0.001, _choice(0.01, 0.02, 0.05, 0.1)),
    },
    "SAGM": {
        "sam_rho": (0.05, _fixed(0.05)),
        "sagm_alpha": (0.001, _choice(0.0005, 0.001, 0.01, 0.02, 0.05, 0.1)),
    },
    "PCL": {"pcl_dropout": (0.25, _fixed(0.25))},
    "FACT": {
        f"fact_{name}": (value, _fixed(value))
        for name, value in (
            *(("alpha", 1.0), ("weight", 2.0), ("temperature", 10.0)),
            *(("momentum", 0.9995), ("warmup", 0.1)),
        )
    },
    "BIRM": {
        "birm_lambda": (1e4, _log10(-1, 5)),
        "birm_penalty_anneal_iters": (200, _int_power(10, 0, 4)),
        "birm_prior": (1200.0, lambda r: r.uniform(1000, 1500)),
    },
    "IRMGames": {},
    "GGA": {
        **{"gga_start": (100, _fixed(100)), "gga_end": (200, _fixed(200))},
        **{"gga_searches": (250, _fixed(250)), "gga_noise": (1e-5, _choice(1e-6, 1e-5))},
    },
    "GGA_L": {"gga_l_gamma": (1e-3, _fixed(1e-3))},
    "CORAL": {"mmd_gamma": (1.0, _log10(-1, 1))},
    "IRM": {
        "irm_lambda": (1e2, _log10(-1, 5)),
        "irm_penalty_anneal_iters": (500, _int_power(10, 0, 4)),
    },
    "VREx": {
        "vrex_lambda": (1e1, _log10(-1, 5)),
        "vrex_penalty_anneal_iters": (500, _int_power(10, 0, 4)),
    },
    "Fish": {"meta_lr": (0.5, _choice(0.05, 0.1, 0.5))},
    "Fishr": {
        "lambda": (1000.0, _log10(1, 4)),
        "penalty_anneal_iters": (1500, lambda r: int(r.uniform(0, 5000))),
        "ema": (0.95, lambda r: r.uniform(0.90, 0.99)),
    },
    "DANN": {
        "lambda": (1.0, _log10(-2, 2)),
        "weight_decay_d": (0.0, _log10(-6, -2)),
        "d_steps_per_g_step": (1, _int_power(2, 0, 3)),
        "grad_penalty": (0.0, _log10(-2, 1)),
        "beta1": (0.5, _choice(0.0, 0.5)),
        "mlp_width": (256, _int_power(2, 6, 10)),
        "mlp_depth": (3, _choice(3, 4, 5)),
        "mlp_dropout": (0.0, _choice(0.0, 0.1, 0.5)),
    },
}

ANNEALED_IRM = EXTRA["IRM"]
MMD_GAMMA = EXTRA["CORAL"]
GROUP_DRO = {"groupdro_eta": (1e-2, _log10(-3, -1))}
CONTRASTIVE = {
    "lmbda": (1e-1, _choice(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)),
    "temperature": (0.1, _choice(0.05, 0.1)),
    "is_normalized": (False, _fixed(False)),
    "is_project": (False, _fixed(False)),
    "is_flipped": (True, _fixed(True)),
}
BOTTLENECK = {
    "ib_lambda": (1e2, _log10(-1, 5)),
    "ib_penalty_anneal_iters": (500, _int_power(10, 0, 4)),
}
EXTRA |= {
    "ADRMX": {
        "cnt_lambda": (1.0, _choice(1.0)),
        "dclf_lambda": (1.0, _choice(1.0)),
        "rmxd_lambda": (1.0, _choice(1.0)),
        "disc_lambda": (0.75, _choice(0.75)),
        "beta1": (0.5, _choice(0.5)),
        "d_steps_per_g_step": (2, _choice(2)),
        "mlp_width": (256, _choice(256)),
        "mlp_dropout": (0.0, _choice(0)),
        "mlp_depth": (9, _choice(8, 9, 10)),
    },
    "T3A": {"t3a_supports": (20, _choice(1, 5, 20, 50, 100, 0))},
    "LinearProbe": {"probe_l2": (1e-3, _log10(-5, 0))},
    "NearestMean": {"mean_distance": ("cosine", _choice("cosine", "euclidean"))},
    "KNN": {"knn_k": (20, _choice(1, 5, 10, 20, 50, 100))},
    "ZeroShot": {},
    "ANDMask": {"tau": (1, lambda r: r.uniform(0.5, 1))},
    "ARM": {},
    "CAD": CONTRASTIVE,
    "CondCAD": CONTRASTIVE,
    "CDANN": EXTRA["DANN"],
    "CausIRL_CORAL": MMD_GAMMA,
    "CausIRL_MMD": MMD_GAMMA,
    "MMD": MMD_GAMMA,
    "EQRM": {
        "eqrm_quantile": (0.75, lambda r: r.uniform(0.5, 0.99)),
        "eqrm_burnin_iters": (2500, _log10(2.5, 3.5)),  # not a whole number when drawn
        "eqrm_lr": (1e-6, _log10(-7, -5)),
    },
    "ERMPlusPlus": {"linear_lr": (5e-5, _log10(-5, -3.5))},
    "GroupDRO": GROUP_DRO,
    "IB_ERM": BOTTLENECK,
    "IB_IRM": {**BOTTLENECK, **ANNEALED_IRM},
    "IGA": {"penalty": (1000, _log10(1, 5))},
    "MLDG": {"mldg_beta": (1, _log10(-1, 1)), "n_meta_test": (2, _choice(1, 2))},
    "MTL": {"mtl_ema": (0.99, _choice(0.5, 0.9, 0.99, 1.0))},
    "Mixup": {"mixup_alpha": (0.2, _log10(-1, 1))},
    "RDM": {"rdm_lr": (1.5e-5, lambda r: r.uniform(8e-6, 2e-5))},
    "RSC": {
        "rsc_f_drop_factor": (1 / 3, lambda r: r.uniform(0, 0.5)),
        "rsc_b_drop_factor": (1 / 3, lambda r: r.uniform(0, 0.5)),
    },
    # DomainBed's default of tau, 1, masks everything: see the protocols named after it.
    "SANDMask": {"tau": (0.5, lambda r: r.uniform(0, 1)), "k": (1e1, _log10(-3, 5))},
    "SD": {"sd_reg": (0.1, _log10(-5, -1))},
    "SagNet": {"sag_w_adv": (0.1, _log10(-2, 1))},
    "SelfReg": {},
    "TRM": {
        **GROUP_DRO,
        "cos_lambda": (1e-4, _log10(-5, 0)),
        "iters": (200, _int_power(10, 0, 4)),
    },
    "Transfer": {
        "t_lambda": (1.0, _log10(-2, 1)),
        "delta": (2.0, lambda r: r.uniform(0.1, 3)),
        "d_steps_per_g": (10, _choice(1, 2, 5)),
        "gda": (False, _choice(True)),
        "lr_d": (1e-3, _log10(-4.5, -2.5)),
        "weight_decay_d": EXTRA["DANN"]["weight_decay_d"],
        "beta1": EXTRA["DANN"]["beta1"],
    },
    "URM": {
        "urm": ("adversarial", _fixed("adversarial")),
        "urm_adv_lambda": (0.1, lambda r: r.uniform(0, 0.2)),
        "urm_generator_output": ("tanh", _choice("tanh", "relu")),
        "urm_discriminator_hidden_layers": (1, _choice(1, 2, 3)),
        "urm_discriminator_optimizer": ("adam", _fixed("adam")),
        "urm_discriminator_label_smoothing": (0, lambda r: r.uniform(0, 0)),
    },
}


def _adrmx(dataset):
    if dataset in SMALL:
        return {"lr": (3e-3, _choice(5e-4, 1e-3, 2e-3, 3e-3))}
    return {"lr": (3e-5, _choice(2e-5, 3e-5, 4e-5, 5e-5))}


def _arm(dataset):
    return {} if dataset in SMALL else {"batch_size": (8, _fixed(8))}


def _rdm(dataset):
    large = dataset in ("DomainNet", "TerraIncognita")
    if dataset == "DomainNet":
        weight, anneal = (0.5, 0.1, 1), (2400, 1500, 3000)
    else:
        narrow = dataset in ("PACS", "TerraIncognita")
        weight, anneal = (5.0, 1 if narrow else 0.1, 10), (1500, 800, 2700)
    without = dataset in ("TerraIncognita", "OfficeHome", "DomainNet")
    rows = {
        "rdm_lambda": (weight[0], lambda r: r.uniform(*weight[1:])),
        "rdm_penalty_anneal_iters": (anneal[0], lambda r: int(r.uniform(*anneal[1:]))),
        "variance_weight": (0.0, _choice(0.0))
        if without
        else (0.004, lambda r: r.uniform(0.001, 0.007)),
    }
    if dataset not in SMALL:
        low, high = (30, 60) if large else (70, 100)
        rows["batch_size"] = (40 if large else 88, lambda r: int(r.uniform(low, high)))
    return rows


def _urm(dataset):
    name = "urm_discriminator_lr"
    return {name: (1e-3, _log10(-5.5, -3.5)) if dataset in SMALL else (5e-5, _log10(-6, -4.5))}


def _pcl(dataset):
    width = 512 if dataset in ("OfficeHome", "TerraIncognita") else 256
    blocks = 2 if dataset == "TerraIncognita" else 1
    projection = 2 if dataset == "OfficeHome" else 1
    names = {"pcl_width": width, "pcl_blocks": blocks, "pcl_projection": projection}
    return {name: (value, _fixed(value)) for name, value in names.items()}


OF_DATASET = {"ADRMX": _adrmx, "ARM": _arm, "PCL": _pcl, "RDM": _rdm, "URM": _urm}
"""Rows that depend on the dataset, and replace those that all algorithms share."""

KNOWN_DRAWS = {
    ("ADRMX", "PACS"): {"mlp_depth": 9, "lr": 3e-5, "mlp_dropout": 0},
    ("ADRMX", "ColoredMNIST"): {"lr": 1e-3},
    ("ANDMask", "PACS"): {"tau": 0.696716},
    ("ARM", "PACS"): {"batch_size": 8},
    ("CAD", "PACS"): {"lmbda": 0.1, "temperature": 0.05},
    ("MMD", "PACS"): {"mmd_gamma": 1.42276},
    ("EQRM", "PACS"): {
        **{"eqrm_quantile": 0.733555, "eqrm_burnin_iters": 423.276, "eqrm_lr": 4.37782e-6}
    },
    ("ERMPlusPlus", "PACS"): {"linear_lr": 2.76965e-5},
    ("GroupDRO", "PACS"): {"groupdro_eta": 0.0129761},
    ("IB_ERM", "PACS"): {"ib_lambda": 2.66182, "ib_penalty_anneal_iters": 1222},
    ("IB_IRM", "PACS"): {"irm_lambda": 65030.5, "irm_penalty_anneal_iters": 2},
    ("IGA", "PACS"): {"penalty": 2400.02},
    ("MLDG", "PACS"): {"mldg_beta": 5.42115, "n_meta_test": 1},
    ("MTL", "PACS"): {"mtl_ema": 0.99},
    ("Mixup", "PACS"): {"mixup_alpha": 0.631349},
    ("RDM", "DomainNet"): {
        **{"rdm_lambda": 0.937562, "rdm_penalty_anneal_iters": 1730, "batch_size": 57}
    },
    ("RDM", "PACS"): {
        **{"rdm_lambda": 9.37562, "rdm_penalty_anneal_iters": 1092, "batch_size": 97},
        **{"variance_weight": 0.00468563, "rdm_lr": 1.50551e-5},
    },
    ("RDM", "VLCS"): {"rdm_lambda": 9.31319},
    ("RDM", "OfficeHome"): {"variance_weight": 0.0},
    ("RSC", "PACS"): {"rsc_f_drop_factor": 0.404125, "rsc_b_drop_factor": 0.258156},
    ("SANDMask", "PACS"): {"tau": 0.393432, "k": 1109.93},
    ("SD", "PACS"): {"sd_reg": 3.21972e-4},
    ("SagNet", "PACS"): {"sag_w_adv": 0.0106382},
    ("TRM", "PACS"): {"cos_lambda": 2.22178e-5, "iters": 16},
    ("Transfer", "PACS"): {
        **{"t_lambda": 0.265352, "delta": 2.70221, "d_steps_per_g": 1, "gda": True},
        **{"lr_d": 6.70077e-5},
    },
    ("URM", "PACS"): {
        **{"urm_adv_lambda": 0.159528, "urm_generator_output": "relu"},
        **{"urm_discriminator_hidden_layers": 1, "urm_discriminator_lr": 2.55722e-5},
        "urm_discriminator_label_smoothing": 0.0,
    },
    ("URM", "ColoredMNIST"): {"urm_discriminator_lr": 2.38245e-4},
}
"""What DomainBed draws at hparams seed 1 of trial 0, to six digits."""


def _by_dataset(dataset):
    if dataset in SMALL:
        return LR_SMALL, DECAY_SMALL, (64, _int_power(2, 3, 9))
    top = 5 if dataset == "DomainNet" else 5.5
    return LR_OTHER, DECAY_OTHER, (32, _int_power(2, 3, top))


def table(algorithm, dataset):
    """{name: (default, draw)} for one algorithm on one dataset."""
    lr, decay, batch = _by_dataset(dataset)
    rows = {**COMMON, "lr": lr, "weight_decay": decay, "batch_size": batch, **EXTRA[algorithm]}
    rows |= OF_DATASET.get(algorithm, lambda dataset: {})(dataset)
    if algorithm in ("DANN", "CDANN"):
        rows |= {"lr_g": lr, "lr_d": lr, "weight_decay_g": decay}
    return rows


def naive_defaults(algorithm, dataset):
    return {name: default for name, (default, _) in table(algorithm, dataset).items()}


def naive_random(algorithm, dataset, seed):
    draws = {}
    for name, (_, draw) in table(algorithm, dataset).items():
        draws[name] = draw(np.random.RandomState(naive_seed_hash(seed, name)))
    return draws


def naive_sequence(algorithm, dataset, seed):
    """What DomainBed of 2020 drew, one after the other from one source, as it stood there."""
    small = dataset in ("ColoredMNIST", "RotatedMNIST")
    r = np.random.RandomState(seed)
    drawn = {"resnet_dropout": r.choice([0.0, 0.1, 0.5])}
    drawn["lr"] = 10 ** r.uniform(-4.5, -2.5) if small else 10 ** r.uniform(-5, -3.5)
    top = 9 if small else 5 if dataset == "DomainNet" else 5.5
    drawn["batch_size"] = int(2 ** r.uniform(3, top))
    if algorithm == "ARM" and not small:
        drawn["batch_size"] = 8
    drawn["weight_decay"] = 0.0 if small else 10 ** r.uniform(-6, -2)
    if algorithm in ("DANN", "CDANN"):
        drawn["lr_g"] = 10 ** r.uniform(-4.5, -2.5) if small else 10 ** r.uniform(-5, -3.5)
        drawn["lr_d"] = 10 ** r.uniform(-4.5, -2.5) if small else 10 ** r.uniform(-5, -3.5)
        drawn["weight_decay_g"] = 0.0 if small else 10 ** r.uniform(-6, -2)
        drawn["lambda"] = 10 ** r.uniform(-2, 2)
        drawn["weight_decay_d"] = 10 ** r.uniform(-6, -2)
        drawn["d_steps_per_g_step"] = int(2 ** r.uniform(0, 3))
        drawn["grad_penalty"] = 10 ** r.uniform(-2, 1)
        drawn["beta1"] = r.choice([0.0, 0.5])
        drawn["mlp_width"] = int(2 ** r.uniform(6, 10))
        drawn["mlp_depth"] = int(r.choice([3, 4, 5]))
        drawn["mlp_dropout"] = r.choice([0.0, 0.1, 0.5])
    if algorithm == "RSC":
        drawn["rsc_f_drop_factor"] = r.uniform(0, 0.5)
        drawn["rsc_b_drop_factor"] = r.uniform(0, 0.5)
    if algorithm == "SagNet":
        drawn["sag_w_adv"] = 10 ** r.uniform(-2, 1)
    if algorithm == "IRM":
        drawn["irm_lambda"] = 10 ** r.uniform(-1, 5)
        drawn["irm_penalty_anneal_iters"] = int(10 ** r.uniform(0, 4))
    if algorithm == "Mixup":
        drawn["mixup_alpha"] = 10 ** r.uniform(-1, -1)
    if algorithm == "GroupDRO":
        drawn["groupdro_eta"] = 10 ** r.uniform(-3, -1)
    if algorithm in ("MMD", "CORAL"):
        drawn["mmd_gamma"] = 10 ** r.uniform(-1, 1)
    if algorithm == "MLDG":
        drawn["mldg_beta"] = 10 ** r.uniform(-1, 1)
    if algorithm == "MTL":
        drawn["mtl_ema"] = r.choice([0.5, 0.9, 0.99, 1.0])
    if algorithm == "VREx":
        drawn["vrex_lambda"] = 10 ** r.uniform(-1, 5)
        drawn["vrex_penalty_anneal_iters"] = int(10 ** r.uniform(0, 4))
    return drawn


OF_2020 = (
    *("ERM", "IRM", "GroupDRO", "Mixup", "MLDG", "CORAL", "MMD", "DANN", "CDANN", "MTL"),
    *("SagNet", "ARM", "VREx", "RSC"),
)
"""The algorithms of the published tables."""
