"""Configuration of perturbation fine-tuning: scGPT's generator on a screen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.tasks.config import FromModelConfig
from cytoray.training.perturbation_config import PerturbationConfig


class FinetunePerturbationConfig(FromModelConfig):
    """Fine-tuning a model to predict perturbed cells from control cells."""

    kind: Literal["finetune-perturbation"] = Field(
        "finetune-perturbation", description="Which stage this file configures."
    )
    perturbation: PerturbationConfig = Field(
        PerturbationConfig(), description="The recipe: the screen's columns, the loss, and what is left out."
    )
    num_genes: int = Field(
        5_000, ge=2, description="Genes of the panel: the most variable ones; the perturbed genes are added."
    )
    max_panel_cells: int = Field(
        20_000, ge=20, description="Cells of the corpus by which the panel, weights and held-out effects are computed."
    )
