"""What the experiment depends on, from a YAML file and from flags, field by field."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field

from domainbed.core import settings as declared
from domainbed.core.settings import Listed, Seeds, Text, known_to

_Algorithm = Annotated[
    Text, known_to("domainbed.experiments.irm_colored_mnist.restart", "PENALTIES")
]
_NotNegative = Annotated[float, Field(ge=0, lt=1e30)]


class Settings(declared.Settings):
    """What decides the numbers of a restart. The defaults are the published values."""

    label_flip: float = Field(
        0.25, ge=0, lt=1, description="how often labels are wrong; 0 for the paper's table 5"
    )
    steps: int = Field(501, ge=1, description="updates")
    hidden_dim: int = Field(390, ge=1, description="width of the hidden layers")
    lr: _NotNegative = Field(0.0004898536566546834, description="Adam's learning rate")
    l2_weight: _NotNegative = Field(
        0.00110794568, description="of the squared norm of all parameters"
    )
    penalty_weight: _NotNegative = Field(
        91257.18613115903, description="from anneal_step on; before it is 1"
    )
    anneal_step: int = Field(190, ge=0, description="first step with that weight")

    def identity(self) -> dict[str, Any]:
        """All settings by name, as JSON values."""
        return self.model_dump(include=set(Settings.model_fields))

    def digest(self) -> str:
        """The name of the folder of these settings' results."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.md5(text.encode("utf-8")).hexdigest()[:12]


class Config(Settings):
    """The settings, and which restarts of which algorithms to compute, where and how."""

    algorithms: Listed[_Algorithm] = Field(
        ("ERM", "IRM", "VREx", "Fishr"),
        description="of ERM, IRM, VREx, Fishr, Fishr-offdiagonal, Fishr-uncentred",
    )
    restarts: Seeds = Field(
        tuple(range(10)),
        description="how many restarts, or a list of their numbers",
        json_schema_extra={"default_text": "10"},
    )
    output_dir: Text = Field("results/irm_colored_mnist", description="the results' folder")
    data_dir: Text = Field("data", description="holds MNIST")
    device: Text | None = Field(
        None,
        description="cpu, cuda or mps",
        json_schema_extra={"default_text": "the best there is"},
    )
    jobs: int | None = Field(
        None,
        ge=1,
        description="restarts computed at a time",
        json_schema_extra={"default_text": "one per GPU or core"},
    )

    @property
    def settings(self) -> Settings:
        """The part that decides the numbers."""
        return Settings(**self.identity())
