"""Configuration of fine-tuning for integration: scGPT's recipe on a panel of variable genes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cytoray.tasks.config import FromModelConfig
from cytoray.training.integration_config import IntegrationConfig


class FinetuneIntegrationConfig(FromModelConfig):
    """Fine-tuning a model for the integration of batches."""

    kind: Literal["finetune-integration"] = Field(
        "finetune-integration", description="Which stage this file configures."
    )
    integration: IntegrationConfig = Field(description="The recipe: column of batches, losses and their weights.")
    num_genes: int = Field(
        1_200, ge=2, description="Genes of the panel: the most variable ones within batches of the corpus."
    )
    max_panel_cells: int = Field(20_000, ge=20, description="Cells of the corpus that the panel is chosen by.")

    @model_validator(mode="after")
    def _steps_are_minibatches(self) -> Self:
        whole = self.integration.cells_per_minibatch * self.workers.most
        if self.train.cells_per_step % whole:
            raise ValueError(
                f"train.cells_per_step is {self.train.cells_per_step}, not a multiple of "
                f"integration.cells_per_minibatch times the workers ({whole})"
            )
        return self
