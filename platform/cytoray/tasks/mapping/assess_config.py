"""Configuration of mapping's assessment; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cytoray.config import Location
from cytoray.tasks.assessing import AssessConfig


class AssessMappingConfig(AssessConfig):
    """Configuration of mapping's assessment: a reference is built of ``data``, and ``query`` is mapped and scored."""

    inputs: ClassVar[tuple[str, ...]] = ("data", "query", "label_map")

    kind: Literal["assess-mapping"] = Field("assess-mapping", description="Which stage this file configures.")
    label_key: str = Field("cell_type", description="Column of obs with the cell types, of data and query.")
    batch_key: str | None = Field(None, description="Column of obs with the batches of data.")
    query: Location = Field(description="File of labelled cells that are mapped.")
    label_map: Location | None = Field(
        None, description="JSON or YAML table of labels, if those of data and query differ."
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Model whose embeddings are a candidate for the space of neighbours: run:NAME, "
        "models:/NAME@ALIAS, or a folder or s3:// URI of a bundle or public scGPT checkpoint. Default: $CYTORAY_MODEL.",
    )
