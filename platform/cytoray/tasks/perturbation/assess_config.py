"""Configuration of the assessment of perturbation response; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from cytoray.config import Location
from cytoray.tasks.assessing import AssessConfig

PERTURBATION_KEY = (
    "Column of obs with the perturbation of each cell (GENE, GENE+GENE, a drug, a guide), or a table of guide counts "
    "in obsm."
)
GENE_SETS = "A .gmt file (path or s3://…) of gene sets that are used beside the packaged ones; repeatable."
SCREEN = "File of another screen with the same columns, whose effects are known; repeatable."
COVARIATES = (
    "Columns of obs with numbers, such as dose,time: effects are interpolated between their measured values, and cells "
    "are compared with controls of the same value, if controls have several."
)
MODEL = (
    "Model whose vectors of genes are used as well: a bundle or public checkpoint, run:NAME or models:/NAME@ALIAS. The "
    "effects that one of finetune-perturbation predicts are a candidate, for targets that it was not trained on."
)


class AssessPerturbationConfig(AssessConfig):
    """Configuration of the assessment of perturbation response."""

    inputs: ClassVar[tuple[str, ...]] = ("data", "gene_sets", "screen")

    kind: Literal["assess-perturbation"] = Field("assess-perturbation", description="Which stage this file configures.")
    perturbation_key: str = Field("perturbation", description=PERTURBATION_KEY)
    control: str = Field("control", description="Value of that column in control cells.")
    batch_key: str | None = Field(
        None, description="Column of obs with the batches: cells are compared with controls of their own batch."
    )
    cell_type_key: str | None = Field(None, description="Column of obs with cell types, for leave-cell-type-out.")
    protocol: Literal["leave-target-out", "leave-cell-type-out"] = Field(
        "leave-target-out", description="What is held out: perturbed genes, or cell types."
    )
    covariates: tuple[str, ...] = Field((), description=COVARIATES)
    gene_sets: tuple[Location, ...] = Field((), description=GENE_SETS)
    screen: tuple[Location, ...] = Field((), description=SCREEN)
    model: str | None = Field(
        None,
        description=f"{MODEL} Default: $CYTORAY_MODEL.",
    )

    @field_validator("covariates", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        """Split ``dose,time`` into names."""
        if not isinstance(value, list | tuple):
            return value
        if not all(isinstance(each, str) for each in value):
            return tuple(value)  # whose bad items are then reported
        return tuple(name.strip() for each in value for name in each.split(",") if name.strip())

    @model_validator(mode="after")
    def _cell_types_are_named(self) -> Self:
        if (self.protocol == "leave-cell-type-out") and self.cell_type_key is None:
            raise ValueError("protocol leave-cell-type-out needs cell_type_key: the column of obs with cell types")
        return self
