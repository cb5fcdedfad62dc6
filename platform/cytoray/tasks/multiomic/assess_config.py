"""Configuration of the assessment of protein prediction; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Location
from cytoray.tasks.assessing import AssessConfig

PROTEIN_KEY = (
    "Where the proteins are: a key of obsm, a modality of an h5mu, or a feature type such as 'Antibody Capture'; "
    "found by its name if not given."
)


class AssessMultiomicConfig(AssessConfig):
    """Configuration of the assessment of protein prediction."""

    inputs: ClassVar[tuple[str, ...]] = ("data", "query")

    kind: Literal["assess-multiomic"] = Field("assess-multiomic", description="Which stage this file configures.")
    protein_key: str | None = Field(None, description=PROTEIN_KEY)
    label_key: str | None = Field(
        None, description="Column of obs with cell types, for correlations within a type; default: cell_type, if any."
    )
    batch_key: str | None = Field(
        None, description="Column of obs with the batches; 5-fold then leaves out whole batches."
    )
    protocol: Literal["5-fold", "transfer"] = Field(
        "5-fold", description="What is held out: folds of the cells, or another data set (query)."
    )
    query: Location | None = Field(None, description="File that the protocol transfer is scored on.")
    model: str | None = Field(
        None,
        description="Transformer whose embeddings are used as well (of a multi-omic one also predicted proteins and a "
        "joint space): a bundle or public checkpoint, run:NAME or models:/NAME@ALIAS. "
        "Default: $CYTORAY_MODEL.",
    )

    @model_validator(mode="after")
    def _a_query_is_transferred_to(self) -> Self:
        if (self.protocol == "transfer") != (self.query is not None):
            given = "and none was given" if self.query is None else f"but the protocol is {self.protocol}"
            raise ValueError(f"a query belongs to protocol transfer, {given}")
        return self
