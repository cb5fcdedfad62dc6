"""Configuration of annotation's assessment; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Location
from cytoray.tasks.assessing import AssessConfig


class AssessAnnotationConfig(AssessConfig):
    """Configuration of annotation's assessment."""

    inputs: ClassVar[tuple[str, ...]] = ("data", "query", "label_map")

    kind: Literal["assess-annotation"] = Field("assess-annotation", description="Which stage this file configures.")
    label_key: str = Field("cell_type", description="Column of obs with the cell types.")
    batch_key: str | None = Field(
        None, description="Column of obs with the batches; 5-fold then leaves out whole batches."
    )
    protocol: Literal["5-fold", "few-labels", "transfer", "leave-type-out"] = Field(
        "5-fold", description="What is held out: folds, most labels, another data set (query), or each type in turn."
    )
    query: Location | None = Field(None, description="File that the protocol transfer is scored on.")
    label_map: Location | None = Field(
        None, description="JSON or YAML table of labels, if those of data and query differ."
    )

    model: str | None = Field(
        None,
        min_length=1,
        description="Transformer that is fine-tuned in each split and joins the blend if it helps: run:NAME, "
        "models:/NAME@ALIAS, or a folder or s3:// URI of a bundle or public scGPT checkpoint; default: $CYTORAY_MODEL.",
    )
    epochs: int = Field(8, ge=1, description="Maximum number of passes of fine-tuning over the training cells.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of fine-tuning.")
    random_start: bool = Field(
        False, description="Also fine-tune from random weights of the same shape, to show what pretraining gives."
    )

    @model_validator(mode="after")
    def _a_query_is_transferred_to(self) -> Self:
        if (self.protocol == "transfer") != (self.query is not None):
            given = "and none was given" if self.query is None else f"but the protocol is {self.protocol}"
            raise ValueError(f"a query belongs to protocol transfer, {given}")
        return self
