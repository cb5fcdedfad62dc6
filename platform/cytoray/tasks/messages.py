"""What requests and answers of all tasks have in common: strict JSON schemas, the same in code, tests and OpenAPI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

# FailFast: only the first bad number of an array is reported.
Indices = Annotated[list[Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]], FailFast()]
Values = Annotated[list[float], FailFast()]
NAME_LENGTH = 256  # characters; the longest names of genes and cells in use have some 60
Name = Annotated[str, Field(max_length=NAME_LENGTH)]


class Message(BaseModel):
    """Base of the schemas: unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class CellPayload(Message):
    """One cell: the value ``v[k]`` of gene ``genes[i[k]]``; genes that are not listed are zero."""

    id: Name | None = Field(None, description="Returned with the answer; unique within a request.")
    i: Indices = Field(description="Positions in `genes`, each at most once.")
    v: Values = Field(description="Raw counts or expression, finite and not negative, one for each of `i`.")


class Request(Message):
    """Base of the requests to endpoints."""

    model: Name | None = Field(
        None,
        description="The model that is asked: NAME, NAME@ALIAS or NAME/VERSION, see /v1/models; default: that of the "
        "URL, else the first of the service.",
    )


class CellsRequest(Request):
    """Cells over one list of genes."""

    genes: Annotated[list[Name], FailFast()] = Field(min_length=1, description="Gene symbols or Ensembl ids.")
    ensembl_ids: Annotated[list[Name], FailFast()] = Field(
        default=[],
        description="Ensembl id of each of `genes`, used if the name is not in the vocabulary; an empty text if it is "
        "unknown, an empty list if all are. Values of a gene that is named more than once are summed, see `warnings`.",
    )
    genomes: Annotated[list[Name], FailFast()] = Field(
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


class NotCounts(Message):
    """A warning about values that do not look like raw counts; they are answered as they are."""

    code: Literal["not_counts"]
    detail: str
    kind: Literal["normalised", "fractional", "implausibly large"]
    num_cells: int = Field(description="Number of cells with such values.")
    first: int = Field(description="Position of the first of them in the request.")


class SummedGenes(Message):
    """A warning about genes that the request names more than once, by symbol and Ensembl id for instance."""

    code: Literal["summed_genes"]
    detail: str
    genes: dict[str, list[str]] = Field(description="The first 20 such genes of the model, with their names.")


class OlderNames(Message):
    """A warning about older names of genes that have an entry of their own; these entries are left out."""

    code: Literal["older_names"]
    detail: str
    genes: dict[str, list[str]] = Field(description="The first 20 such genes of the model, with the names left out.")


CellsWarning = Annotated[EmptyCells | NotCounts | SummedGenes | OlderNames, Field(discriminator="code")]


class Response(Message):
    """An answer, with the model that gave it."""

    model: ModelInfo


class CellsResponse(Response):
    """Answers to cells, in the order of the request."""

    genes: GeneSummary
    warnings: list[CellsWarning] = Field(description="About cells and genes of the request; usually empty.")
