"""Settings of perturbation training, in a module without torch: a configuration file is checked before its import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.config import Config


class PerturbationConfig(Config):
    """Settings of perturbation training; the defaults are those of scGPT's recipe if it has the setting."""

    perturbation_key: str = Field(
        "perturbation",
        description="Column of obs with what was done to each cell: a gene, several (A+B), a drug or a cytokine. Cells "
        "without a value, and unassigned ones, are left out.",
    )
    control: str = Field("control", description="Its value in control cells.")
    batch_key: str | None = Field(
        None,
        description="Column of obs with the experimental batch, in which a cell and its control agree; cells of "
        "batches without a control are left out. Default: any control.",
    )
    left_out: tuple[str, ...] = Field(
        (), description="Further values of perturbation_key whose cells are left out, such as non-targeting guides."
    )
    unknown_targets: Literal["refuse", "leave_out", "condition"] = Field(
        "refuse",
        description="Perturbations with a part that is not a gene of the model: refuse them, leave their cells out, or "
        "give each such part (a drug, a cytokine) a token of its own.",
    )
    max_tokens: int = Field(
        1_536,
        ge=2,
        description="Maximum number of genes per cell; of a larger panel a sample, drawn for each cell and epoch, that "
        "always has the perturbed genes.",
    )
    loss: Literal["mse", "weighted"] = Field(
        "mse",
        description="Squared error of all genes alike, or weighted for each perturbation by how much it changes a gene "
        "(squared t-score against all other cells).",
    )
    balanced: bool = Field(
        False, description="Whether every perturbation comes equally often; false: every cell comes equally often."
    )
    control_cells: bool = Field(
        True, description="Whether control cells are predicted too, from other control cells and without a flag."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the model.")
