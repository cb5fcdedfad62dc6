"""A gene network: its edges with their evidence, its programs, and the folder that holds them.

edges.parquet  activity.parquet  network.graphml  report.html  network.json (last: what the others' digests are)
"""

# T transcription factors, G targets, C cells

from __future__ import annotations

import difflib
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import networkx
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import storage
from cytoray.errors import ConfigError, DigestError, ModelError, NotFoundError
from cytoray.failpoints import failpoint
from cytoray.tasks.networks.candidates import CORRELATION, Candidates

MANIFEST, EDGES, ACTIVITY, GRAPH, PAGE = (
    "network.json", "edges.parquet", "activity.parquet", "network.graphml", "report.html",
)  # fmt: skip
Float32 = npt.NDArray[np.float32]
FORMAT = "cytoray-network-1"
MOST_IN_GRAPH = 5_000  # edges of each group in the GraphML
REGULON = 50  # strongest targets of a factor that its activity is judged by
KEYS = ("group", "tf", "target")


@dataclass(frozen=True, eq=False)
class GeneNetwork:
    """Edges of each group of cells, the strongest first, and what is known of the network as a whole.

    Columns of ``edges``: group, tf, target, weight (0 to 1), sign (1, -1, or 0 if unknown), then one per kind of
    evidence.
    """

    edges: pd.DataFrame
    about: Mapping[str, Any]  # of network.json: tfs, targets, groups, evidence, reliability, programs, …
    activity: pd.DataFrame | None = None  # (C, T) by the names of cells; None if it was not read

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of cells; "all" if cells were not grouped."""
        return tuple(self.about["groups"])

    @property
    def tfs(self) -> tuple[str, ...]:
        """The T transcription factors."""
        return tuple(self.about["tfs"])

    @property
    def targets(self) -> tuple[str, ...]:
        """The G targets."""
        return tuple(self.about["targets"])

    @property
    def programs(self) -> list[dict[str, Any]]:
        """Groups of genes that vary together: number, genes, and the gene sets that they contain."""
        return list(self.about["programs"])

    def reliability(self, group: str | None = None) -> dict[str, npt.NDArray[np.float64]]:
        """Return how reliable each kind of evidence of a group is, of each factor (T,), by halves of the cells.

        Empty if the network was inferred without it.
        """
        kinds = self.about.get("reliability", {}).get(self.groups[0] if group is None else group, {})
        return {kind: np.asarray(values, np.float64) for kind, values in kinds.items()}

    def group_edges(self, group: str | None = None) -> pd.DataFrame:
        """Return the edges of one group, the first if none is named; ConfigError for an unknown one."""
        name = self.groups[0] if group is None else group
        if name not in self.groups:
            raise ConfigError(f"The network has no group {name!r}.", remedy=f"Its groups are {', '.join(self.groups)}.")
        return self.edges[self.edges["group"] == name]

    def matrix(self, column: str, group: str | None = None) -> Float32:
        """Return a column of the edges of a group as a matrix, (T, G); 0 for pairs that were not kept."""
        edges = self.group_edges(group)
        rows = pd.Index(self.tfs).get_indexer(pd.Index(edges["tf"]))
        columns = pd.Index(self.targets).get_indexer(pd.Index(edges["target"]))
        found = np.zeros((len(self.tfs), len(self.targets)), np.float32)
        found[rows, columns] = edges[column].to_numpy(np.float32)
        return found

    def neighbourhood(self, gene: str, *, num: int = 20, group: str | None = None) -> pd.DataFrame:
        """Return the strongest edges of a gene, as regulator and as target: at most ``num`` of each kind.

        Raises ConfigError, with similar names, for a gene that the network does not have.
        """
        if gene not in self.tfs and gene not in self.targets:
            similar = difflib.get_close_matches(gene, [*self.tfs, *self.targets], n=3)
            raise ConfigError(
                f"The network has no gene {gene!r}.",
                remedy=f"Did you mean {', '.join(similar)}?" if similar else "Name a factor or target of the network.",
            )
        edges = self.group_edges(group)
        return pd.concat([edges[edges[key] == gene].head(num) for key in KEYS[1:]], ignore_index=True)

    def graph(self, *, num: int = MOST_IN_GRAPH) -> networkx.MultiDiGraph:
        """Return the strongest ``num`` edges of each group as a directed graph."""
        graph = networkx.MultiDiGraph()
        factors = set(self.tfs)
        for group in self.groups:
            for edge in edge_rows(self.group_edges(group).head(num)):
                for gene in (edge.tf, edge.target):
                    graph.add_node(gene, kind="factor" if gene in factors else "target")
                graph.add_edge(edge.tf, edge.target, weight=edge.weight, sign=edge.sign, group=group)
        return graph


class Edge(NamedTuple):
    """An edge without its evidence."""

    tf: str
    target: str
    weight: float
    sign: int


def edge_rows(edges: pd.DataFrame) -> list[Edge]:
    """Return the rows of a table of edges."""
    columns = [edges[name].tolist() for name in Edge._fields]
    return [Edge(*row) for row in zip(*columns, strict=True)]


def build_edges(
    group: str, candidates: Candidates, weights: Float32, evidence: Mapping[str, Float32], *, num: int
) -> pd.DataFrame:
    """Return the ``num`` strongest pairs of a group as edges, ties in the order of factors and targets."""
    flat = np.where(candidates.valid, weights, -np.inf).ravel()
    num = min(num, int(candidates.valid.sum()))
    order = np.argsort(-flat, kind="stable")[:num]
    rows, columns = np.unravel_index(order, weights.shape)
    correlations = evidence[CORRELATION].ravel()[order]
    table: dict[str, npt.NDArray[Any] | list[str]] = {
        "group": [group] * num,
        "tf": np.asarray(candidates.tfs, object)[rows],
        "target": np.asarray(candidates.targets, object)[columns],
        "weight": flat[order].astype(np.float32),
        "sign": np.sign(correlations).astype(np.int8),
    }
    return pd.DataFrame({**table, **{kind: values.ravel()[order] for kind, values in evidence.items()}})


def signed_regulons(network: GeneNetwork, group: str, genes: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return the signed weights of each factor's strongest targets, (len(genes), T)."""
    place = {gene: row for row, gene in enumerate(genes)}
    column = {tf: number for number, tf in enumerate(network.tfs)}
    found = np.zeros((len(genes), len(network.tfs)))
    strongest = network.group_edges(group).groupby("tf", sort=False, observed=True).head(REGULON)
    for edge in edge_rows(strongest):
        found[place[edge.target], column[edge.tf]] = edge.weight * edge.sign
    return found


def save_network(network: GeneNetwork, uri: str, *, page: bytes) -> str:
    """Write a network to a folder or prefix, network.json last, and return the digest of that.

    Each file is written whole; an older network.json is removed first.
    """
    assert network.activity is not None, "a network is saved with its activities"
    graph = io.BytesIO()
    networkx.write_graphml(network.graph(), graph)
    files = {
        EDGES: _parquet(network.edges),
        ACTIVITY: _parquet(network.activity),
        GRAPH: graph.getvalue(),
        PAGE: page,
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    listing = {"format": FORMAT, **network.about, "files": digests}
    data = (json.dumps(listing, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    storage.delete(storage.join(uri, MANIFEST))
    for name, content in files.items():
        failpoint("networks.before_file")
        storage.write_bytes(storage.join(uri, name), content)
    storage.write_bytes(storage.join(uri, MANIFEST), data)
    return hashlib.sha256(data).hexdigest()


def load_network(uri: str, *, with_activity: bool = False) -> GeneNetwork:
    """Load a network.

    Raises NotFoundError if the place has none, ModelError for another format, DigestError for changed files.
    """
    data = storage.find_bytes(storage.join(uri, MANIFEST))
    if data is None:
        raise NotFoundError(
            f"{uri} is not a network: it has no {MANIFEST}.",
            remedy="Check the path; an inference that was interrupted leaves none, run it again.",
        )
    about = parse_about(data, name=f"{uri}/{MANIFEST}")
    names = (EDGES, ACTIVITY) if with_activity else (EDGES,)
    tables = [read_table(storage.find_bytes(storage.join(uri, name)), name, about) for name in names]
    return GeneNetwork(tables[0], about, tables[1] if with_activity else None)


def find_network(uri: str, *, key: str) -> GeneNetwork | None:
    """Return the network of a place if its key is ``key``, None if it is missing or of other data or settings."""
    data = storage.find_bytes(storage.join(uri, MANIFEST))
    if data is None or parse_about(data, name=f"{uri}/{MANIFEST}").get("key") != key:
        return None
    return load_network(uri, with_activity=True)


def parse_about(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse the content of a network.json; DigestError if it is not JSON, ModelError for another format."""
    try:
        about = json.loads(data)
    except ValueError as error:
        raise DigestError(f"{name} is not JSON.", remedy="Infer the network again.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ModelError(f"{name} is not a network of format {FORMAT}.", remedy="Infer it again with this version.")
    return about


def read_table(data: bytes | None, name: str, about: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table of a network after comparing its bytes with their digest; DigestError if they differ."""
    if data is None or hashlib.sha256(data).hexdigest() != about["files"][name]:
        raise DigestError(
            f"{name} of the network is missing, changed or damaged.",
            remedy="Copy the network again, or infer it again.",
        )
    return pd.read_parquet(io.BytesIO(data))


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()
