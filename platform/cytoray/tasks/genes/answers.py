"""Answer `/v1/genes`: the model's vectors of genes, and the genes nearest to each; it is not about cells."""

# G genes, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import Message, Name, Request, Response

if TYPE_CHECKING:
    from cytoray.model.gene_embeddings import GeneEmbeddings

Float32 = npt.NDArray[np.float32]
MOST_GENES, MOST_NEIGHBOURS = 256, 100
TOKENS_PER_SEARCH = 256  # what comparing a gene with all others takes, in tokens of a forward pass


class GenesRequest(Request):
    """Genes by symbol or Ensembl id."""

    genes: list[Name] = Field(
        min_length=1, max_length=MOST_GENES, description="Gene symbols, older symbols or Ensembl ids."
    )
    neighbours: int = Field(0, ge=0, le=MOST_NEIGHBOURS, description="Number of nearest genes of each.")
    include_embedding: bool = Field(True, description="Whether each gene carries its embedding.")


class NearGene(Message):
    """A gene near another one."""

    gene: str
    cosine: float = Field(description="Of the embeddings without the mean of all genes.")


class FoundGene(Message):
    """A gene that the model knows."""

    gene: str = Field(description="As it was asked for.")
    symbol: str = Field(description="Its name in the model's vocabulary.")
    embedding: list[float] | None = Field(None, description="Absent if `include_embedding` is false.")
    neighbours: list[NearGene] = Field(description="Nearest genes, the nearest first; empty if none were asked for.")


class GenesResponse(Response):
    """Embeddings of genes, in the order of the request, without those that the model does not know."""

    genes: list[FoundGene]
    unknown: list[str] = Field(description="Genes that the model does not know.")


@dataclass(frozen=True, eq=False)
class GeneAnswers:
    """Embeddings of G genes and their nearest genes."""

    genes: tuple[str, ...]  # (G,) as they were asked for, without unknown ones
    symbols: tuple[str, ...]  # (G,) in the model's vocabulary
    embeddings: Float32  # (G, D); D is 0 if they were not asked for
    neighbours: tuple[tuple[tuple[str, float], ...], ...]  # (G,) name and cosine of the nearest genes
    unknown: tuple[str, ...]


def load_genes(model: ServedModel) -> GeneEmbeddings:
    """Return the vectors of all genes that the model knows."""
    from cytoray.model.gene_embeddings import static_gene_embeddings

    return static_gene_embeddings(model.bundle)


def find_genes(model: ServedModel, questions: Sequence[Question[GenesRequest]]) -> list[dict[str, Any]]:
    """Find the genes of each request; the vectors of all genes are computed at the first one and kept."""
    return [_find(model, question.request) for question in questions]


def cost(question: Question[GenesRequest]) -> int:
    """Return about how many tokens take as long."""
    return len(question.request.genes) * (TOKENS_PER_SEARCH if question.request.neighbours else 1)


def read_genes(answers: Answers) -> GeneAnswers:
    """Return the answer as arrays."""
    found = answers.first["genes"]
    rows = [one.get("embedding") or [] for one in found]
    return GeneAnswers(
        genes=tuple(one["gene"] for one in found),
        symbols=tuple(one["symbol"] for one in found),
        embeddings=np.array(rows, np.float32).reshape(len(found), len(rows[0]) if rows else 0),
        neighbours=tuple(tuple((near["gene"], near["cosine"]) for near in one["neighbours"]) for one in found),
        unknown=tuple(answers.first["unknown"]),
    )


def _find(model: ServedModel, request: GenesRequest) -> dict[str, Any]:
    known = model.part(load_genes)
    vocabulary = model.bundle.vocabulary
    found: list[dict[str, Any]] = []
    unknown: list[str] = []
    for gene, token in zip(request.genes, vocabulary.map_genes(request.genes, sum_older=True).ids, strict=True):
        if token < 0:
            unknown.append(gene)
            continue
        row = known.rows[vocabulary.tokens[token]]
        near = known.nearest(row, request.neighbours) if request.neighbours else []
        one: dict[str, Any] = {"gene": gene, "symbol": known.names[row]}
        if request.include_embedding:
            one["embedding"] = known.values[row].tolist()
        found.append(one | {"neighbours": [{"gene": name, "cosine": cosine} for name, cosine in near]})
    return {"genes": found, "unknown": unknown}


ENDPOINT: Endpoint[GenesRequest, dict[str, Any]] = Endpoint(
    name="genes",
    description="Embed genes: the model's vector of each gene, independent of cells, and the nearest genes.",
    request=GenesRequest,
    response=GenesResponse,
    run=find_genes,
    answer=lambda question, found: found,
    cost=cost,
    read=read_genes,
    example={"genes": ["CD3D", "ENSG00000198851"], "neighbours": 5},
)
