"""What requests and answers of all tasks have in common: strict JSON schemas, the same in code, tests and OpenAPI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

# FailFast: only the first bad number of an array is reported.
Indices = Annotated[list[Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]], FailFast()]
Values = Annotated[list[float], FailFast()]


class Message(BaseModel):
    """Base of the schemas: unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class CellPayload(Message):
    """One cell: the value ``v[k]`` of gene ``genes[i[k]]``; genes that are not listed are zero."""

    id: str | None = Field(None, max_length=256, description="Returned with the answer; unique within a request.")
    i: Indices = Field(description="Positions in `genes`, each at most once.")
    v: Values = Field(description="Raw counts or expression, finite and not negative, one for each of `i`.")


class CellsRequest(Message):
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


class ModelInfo(Message):
    """Identity of the model that answered, for tracing an embedding or label."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 of the model bundle.")


class GeneSummary(Message):
    """Genes of the request that the model does and does not know."""

    matched: int
    total: int
    unknown: list[str] = Field(description="The first 20 genes that the model does not know.")


class EmptyCells(Message):
    """A warning about cells that have no expressed gene that the model knows; their answers are null."""

    code: Literal["empty_cells"]
    detail: str
    indices: list[int] = Field(description="Positions of these cells in the request.")


class Response(Message):
    """An answer, with the model that gave it."""

    model: ModelInfo


class CellsResponse(Response):
    """Answers to cells, in the order of the request."""

    genes: GeneSummary
    warnings: list[EmptyCells] = Field(description="Of cells that have no answer; usually empty.")
