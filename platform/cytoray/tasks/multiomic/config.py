"""Configuration of multi-omic fine-tuning: a panel of genes, and features of further modalities as tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.tasks.config import FromModelConfig
from cytoray.training.multiomic_config import MultiomicConfig


class FinetuneMultiomicConfig(FromModelConfig):
    """Fine-tuning a model of genes on cells of several modalities."""

    kind: Literal["finetune-multiomic"] = Field("finetune-multiomic", description="Which stage this file configures.")
    multiomic: MultiomicConfig = Field(description="The recipe: modalities, what is hidden, and weights of the losses.")
    num_genes: int = Field(
        1_200,
        ge=2,
        description="Genes of the panel: the most variable ones; those that code for the proteins are added.",
    )
    max_panel_cells: int = Field(20_000, ge=20, description="Cells of the corpus that the panel is chosen by.")
