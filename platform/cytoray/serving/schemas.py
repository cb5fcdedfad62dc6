"""JSON schemas of requests, responses and problems: strict, and the same in code, tests and OpenAPI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

Task = Literal["embed", "annotate"]

# FailFast: only the first bad number of an array is reported.
Indices = Annotated[list[Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]], FailFast()]
Values = Annotated[list[float], FailFast()]


class _Wire(BaseModel):
    """Base of the schemas: unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class CellPayload(_Wire):
    """One cell: the value ``v[k]`` of gene ``genes[i[k]]``; genes that are not listed are zero."""

    id: str | None = Field(None, max_length=256, description="Returned with the answer; unique within a request.")
    i: Indices = Field(description="Positions in `genes`, each at most once.")
    v: Values = Field(description="Raw counts or expression, finite and not negative, one for each of `i`.")


class EmbedRequest(_Wire):
    """Cells over one list of genes."""

    genes: Annotated[list[str], FailFast()] = Field(min_length=1, description="Gene symbols or Ensembl ids.")
    ensembl_ids: Annotated[list[str], FailFast()] = Field(
        default=[],
        description="Ensembl id of each of `genes`, used if the name is not in the vocabulary; an empty text if it is "
        "unknown, an empty list if all are. A name may occur more than once if the ids or genomes differ.",
    )
    genomes: Annotated[list[str], FailFast()] = Field(
        default=[],
        description="Assembly or species of each of `genes` (GRCh38, mm10), an empty text if it is unknown, an empty "
        "list if all are. In a mixture of species only human genes of human cells are used.",
    )
    cells: Annotated[list[CellPayload], FailFast()] = Field(min_length=1)


class AnnotateRequest(EmbedRequest):
    """Cells over one list of genes, to be labelled."""

    include_embedding: bool = Field(True, description="Whether each answered cell carries its embedding.")


class ModelInfo(_Wire):
    """Identity of the model that answered, for tracing an embedding or label."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 of the model bundle.")


class GeneSummary(_Wire):
    """Genes of the request that the model does and does not know."""

    matched: int
    total: int
    unknown: list[str] = Field(description="The first 20 genes that the model does not know.")


class EmptyCells(_Wire):
    """A warning about cells that have no expressed gene that the model knows; their answers are null."""

    code: Literal["empty_cells"]
    detail: str
    indices: list[int] = Field(description="Positions of these cells in the request.")


class EmbeddedCell(_Wire):
    """The answer for one cell of `/v1/embed`."""

    id: str | None
    embedding: list[float] | None = Field(
        description="Of unit length; the decimals reproduce the float32 values exactly. Null for an empty cell."
    )


class AnnotatedCell(_Wire):
    """The answer for one cell of `/v1/annotate`; all but the id is null for an empty cell, see `warnings`."""

    id: str | None
    label: str | None
    probability: float | None = Field(description="Probability of `label`.")
    probabilities: dict[str, float] | None = Field(description="Probability of every label; they sum to 1.")
    embedding: list[float] | None = Field(None, description="Absent if `include_embedding` is false.")


class EmbedResponse(_Wire):
    """Embeddings, in the order of the request."""

    model: ModelInfo
    genes: GeneSummary
    warnings: list[EmptyCells] = Field(description="Of cells that have no answer; usually empty.")
    cells: list[EmbeddedCell]


class AnnotateResponse(_Wire):
    """Labels with probabilities, in the order of the request."""

    model: ModelInfo
    genes: GeneSummary
    warnings: list[EmptyCells] = Field(description="Of cells that have no answer; usually empty.")
    cells: list[AnnotatedCell]


class Problem(BaseModel):
    """An RFC 9457 problem: why a request was not answered, with further fields that name the bad entries."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable error code, for programs.")
    request_id: str
