"""Answer `/v1/networks`: regulators and targets of genes, by a network that the bundle carries; not about cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cytoray.errors import ConfigError, RequestError
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import Message, Name, Request, Response

if TYPE_CHECKING:
    import pandas as pd

    from cytoray.tasks.networks.network import GeneNetwork

MOST_GENES, MOST_EDGES = 256, 500
TOKENS_PER_GENE = 64  # what a look-up takes, in tokens of a forward pass


class NetworksRequest(Request):
    """Genes whose neighbourhood in the network is asked for."""

    genes: list[Name] = Field(
        min_length=1, max_length=MOST_GENES, description="Names of genes, as in the data of the network."
    )
    num_edges: int = Field(
        20, ge=1, le=MOST_EDGES, description="Maximum number of regulators, and of targets, of each gene."
    )
    group: Name | None = Field(None, description="Group of cells; null: the first of the network.")


class NetworkEdge(Message):
    """An edge from a transcription factor to a target."""

    tf: str
    target: str
    weight: float = Field(
        description="Of all evidence that halves of the cells repeat, from 0 to 1; 0.5: nothing is known."
    )
    sign: Literal[-1, 0, 1] = Field(description="Of the correlation of factor and target without depth.")
    correlation: float


class GeneNeighbourhood(Message):
    """The strongest edges of a gene."""

    gene: str
    regulators: list[NetworkEdge] = Field(description="Edges to the gene, the strongest first.")
    targets: list[NetworkEdge] = Field(description="Edges from the gene, the strongest first; empty if not a factor.")


class NetworksResponse(Response):
    """Neighbourhoods of genes, in the order of the request, without genes that the network does not have."""

    group: str
    genes: list[GeneNeighbourhood]
    unknown: list[str] = Field(description="Genes that the network does not have.")


def load_networks(model: ServedModel) -> GeneNetwork | None:
    """Load the network of the model; None if it carries none."""
    if not model.carries("networks"):
        return None
    from cytoray.tasks.networks.attached import attached_network

    return attached_network(model.bundle)


def check_networks(model: ServedModel) -> None:
    """Raise RequestError if the model carries no network."""
    if model.part(load_networks) is None:
        raise RequestError(
            f"Model {model.info.name} version {model.info.version} carries no gene network.",
            remedy="Attach one with `cytoray models attach MODEL --networks FOLDER`, and serve that.",
            code="wrong_model",
        )


def admit_networks(model: ServedModel, question: Question[NetworksRequest]) -> None:
    """Refuse a group that the network does not have."""
    network, group = _loaded(model), question.request.group
    if group is not None and group not in network.groups:
        raise RequestError(
            f"The network has no group {group!r}.",
            remedy=f"Its groups are {', '.join(network.groups[:20])}.",
            code="unknown_group",
            pointer="/group",
        )


def find_neighbourhoods(model: ServedModel, questions: Sequence[Question[NetworksRequest]]) -> list[dict[str, Any]]:
    """Find the neighbourhoods of the genes of each request."""
    network = _loaded(model)
    return [_find(network, question.request) for question in questions]


def cost(question: Question[NetworksRequest]) -> int:
    """Return about how many tokens take as long."""
    return len(question.request.genes) * TOKENS_PER_GENE


def read_networks(answers: Answers) -> pd.DataFrame:
    """Return the edges as a table: gene, tf, target, weight, sign, correlation; each gene's regulators first."""
    import pandas as pd  # a client that asks nothing of networks does not load it

    rows = [
        {"gene": one["gene"], **edge}
        for one in answers.first.get("genes", [])
        for edge in (*one["regulators"], *one["targets"])
    ]
    return pd.DataFrame(rows, columns=["gene", *NetworkEdge.model_fields])


def _find(network: GeneNetwork, request: NetworksRequest) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    unknown: list[str] = []
    for gene in request.genes:
        try:
            table = network.neighbourhood(gene, num=request.num_edges, group=request.group)
        except ConfigError:
            unknown.append(gene)
            continue
        rows = table[list(NetworkEdge.model_fields)].to_dict("records")
        sides = {side: [row for row in rows if row[key] == gene] for side, key in _SIDES.items()}
        found.append({"gene": gene, **sides})
    return {"group": request.group or network.groups[0], "genes": found, "unknown": unknown}


_SIDES = {"regulators": "target", "targets": "tf"}


def _loaded(model: ServedModel) -> GeneNetwork:
    network = model.part(load_networks)
    assert network is not None, "checked before"
    return network


ENDPOINT: Endpoint[NetworksRequest, dict[str, Any]] = Endpoint(
    name="networks",
    description="Find the regulators and targets of genes in the gene network that the model carries.",
    request=NetworksRequest,
    response=NetworksResponse,
    run=find_neighbourhoods,
    answer=lambda question, found: found,
    check=check_networks,
    load=load_networks,
    admit=admit_networks,
    cost=cost,
    read=read_networks,
    problems=("wrong_model", "unknown_group"),
    example={"genes": ["GATA1"], "num_edges": 5},
)
