"""What a run needs of the machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from domainbed.settings import Settings, Text


class RunOptions(Settings):
    """What a run needs of the machine; nothing here changes its result."""

    data_dir: Text = Field("data", description="where the datasets lie")
    device: Text | None = Field(
        None,
        description="cpu, cuda or mps",
        json_schema_extra={"default_text": "the best there is"},
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes per run that read images",
        json_schema_extra={"default_text": "by the cores"},
    )
    eval_splits: Literal["needed", "all"] = Field(
        "needed", description="what is evaluated at every record: what selection needs, or all"
    )
    skip_model_save: bool = Field(False, description="do not keep the trained weights")
    save_model_every_checkpoint: bool = Field(False, description="keep the weights of every record")
