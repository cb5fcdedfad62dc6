"""Configuration of fine-tuning for regression."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.model.config import NumberLoss
from cytoray.tasks.config import FromModelConfig


class FinetuneRegressionConfig(FromModelConfig):
    """Fine-tuning a model to predict a number of each cell."""

    kind: Literal["finetune-regression"] = Field("finetune-regression", description="Which stage this file configures.")
    target_key: str = Field(min_length=1, description="Column of obs with the numbers; cells without one are skipped.")
    number_loss: NumberLoss = Field(
        "squared",
        description="squared: squared error; huber: linear beyond one standard deviation, for numbers with outliers.",
    )
