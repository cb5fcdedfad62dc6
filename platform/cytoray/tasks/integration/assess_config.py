"""Configuration of integration's assessment; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cytoray.tasks.assessing import AssessConfig

Stress = Literal["none", "thinned", "panel", "missing-type"]


class AssessIntegrationConfig(AssessConfig):
    """Configuration of integration's assessment."""

    kind: Literal["assess-integration"] = Field("assess-integration", description="Which stage this file configures.")
    batch_key: str = Field("batch", description="Column of obs with the batches; cells without one are left out.")
    label_key: str | None = Field(
        None, description="Column of obs with the cell types, which only score; without it, clusters stand in for them."
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Transformer whose embeddings are scored and a candidate: any model URI. Default: $CYTORAY_MODEL.",
    )
    stress: Stress = Field(
        "none",
        description="Make the largest batch harder: thinned keeps 25 % of its counts, panel 70 % of its genes, "
        "missing-type all but its most frequent cell type.",
    )

    @model_validator(mode="after")
    def _a_type_needs_labels(self) -> Self:
        if self.stress == "missing-type" and self.label_key is None:
            raise ValueError("stress missing-type needs label_key")
        return self
