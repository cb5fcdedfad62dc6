"""The page of a network: its strongest factors and edges, its programs, and how factors go with them."""

# T transcription factors, K programs

from __future__ import annotations

import html
from collections.abc import Sequence

import networkx
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from cytoray.evaluation.assessment_page import png
from cytoray.pages.charts import COLOURS, FAINT, INK, page_style
from cytoray.tasks.networks.candidates import CORRELATION
from cytoray.tasks.networks.network import GeneNetwork, edge_rows

MOST_DRAWN, MOST_NAMED = 120, 60  # edges, genes with a name
MOST_FACTORS, MOST_PROGRAMS, MOST_RELIABLE = 30, 15, 20
UNRELIABLE = 0.1
_ACTIVATES, _REPRESSES = COLOURS[0], COLOURS[2]
_RELIABILITY = (
    "Agreement of two halves of the cells on the order of a factor's targets, from 0 to 1. Evidence is multiplied by "
    "it, so a factor with unreliable evidence has no strong edges."
)
_STYLE = (
    "body{font-family:sans-serif;max-width:60rem;margin:2rem auto;color:#1f2933}img{max-width:100%}"
    "h2{margin-top:2rem}td,th{text-align:left;padding:.15rem .6rem;vertical-align:top}"
)


def render_network(network: GeneNetwork) -> bytes:
    """Render the page of a network."""
    about = network.about
    groups = ", ".join(f"{name} ({num:,} cells)" for name, num in about["groups"].items())
    facts = [
        f"{len(network.tfs):,} transcription factors, {len(network.targets):,} targets",
        f"groups: {groups}",
        f"{len(network.edges):,} edges; weights of evidence: "
        + "; ".join(
            f"{name}: " + ", ".join(f"{kind} {weight:.2f}" for kind, weight in weights.items())
            for name, weights in about["evidence"].items()
        ),
        *about["warnings"],
    ]
    parts = [f"<h1>Gene network of {html.escape(about['uri'].rpartition('/')[2])}</h1>", _list(facts)]
    parts += [_picture(f"Strongest edges: {group}", png(draw_edges(network, group=group))) for group in network.groups]
    if network.programs:
        parts.append(_picture("Factors and programs", png(draw_programs(network))))
        parts += ["<h2>Programs</h2>", _programs(network)]
    parts += ["<h2>Edges</h2>", _edges(network)]
    if any(network.reliability(group) for group in network.groups):
        parts += ["<h2>Reliability</h2>", f"<p>{_RELIABILITY}</p>"]
        parts += [_reliability(network, group) for group in network.groups]
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Network</title><style>{_STYLE}</style>"
    return (page + "".join(parts) + "</html>").encode()


def draw_edges(network: GeneNetwork, *, group: str | None = None, gene: str | None = None) -> Figure:
    """Draw the strongest edges of a group, or those of one gene; blue: positive correlation, red: negative."""
    edges = network.group_edges(group).head(MOST_DRAWN)
    if gene is not None:
        edges = network.neighbourhood(gene, num=MOST_DRAWN // 4, group=group)
    graph = networkx.DiGraph()
    graph.add_edges_from(zip(edges["tf"], edges["target"], strict=True))
    places = networkx.spring_layout(graph, seed=0, k=1.5 / max(len(graph), 1) ** 0.5)
    with page_style():
        figure = Figure(figsize=(9, 7), layout="constrained")
        axes = figure.add_subplot()
        axes.axis("off")
        lines = [(places[a], places[b]) for a, b in zip(edges["tf"], edges["target"], strict=True)]
        colours = [_ACTIVATES if sign >= 0 else _REPRESSES for sign in edges["sign"]]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8, alpha=0.5, zorder=1))
        factors = set(network.tfs)
        for kind, size, colour in ((True, 60, COLOURS[1]), (False, 14, FAINT)):
            points = [places[node] for node in graph if (node in factors) == kind]
            if points:
                x, y = np.transpose(points)
                axes.scatter(x, y, s=size, c=colour, zorder=2)
        ranked = sorted(graph, key=lambda node: (node not in factors, -graph.degree(node), node))
        for node in ranked[:MOST_NAMED]:
            axes.annotate(node, places[node], fontsize=7, color=INK, zorder=3, ha="center", va="bottom")
        axes.autoscale_view()
    return figure


def draw_programs(network: GeneNetwork) -> Figure:
    """Draw the mean correlation of the factors of most edges with each program's genes, a heat map."""
    correlations = network.matrix(CORRELATION)
    programs = network.programs[:MOST_PROGRAMS]
    columns = {gene: column for column, gene in enumerate(network.targets)}
    means = np.stack(
        [correlations[:, [columns[gene] for gene in each["genes"]]].mean(axis=1) for each in programs], axis=1
    )
    rows = np.argsort(-np.abs(means).max(axis=1), kind="stable")[:MOST_FACTORS]
    rows = rows[np.argsort(means[rows].argmax(axis=1), kind="stable")]
    limit = max(float(np.abs(means[rows]).max()), 1e-6)
    with page_style():
        figure = Figure(figsize=(9, 3 + 0.2 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(means[rows], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_yticks(range(len(rows)), [network.tfs[row] for row in rows], fontsize=7)
        names = [f"{each['program']}: {_title(each)}" for each in programs]
        axes.set_xticks(range(len(programs)), names, rotation=60, ha="right", fontsize=7)
        figure.colorbar(shown, ax=axes, label="mean correlation")
    return figure


def _title(program: dict[str, object]) -> str:
    sets, genes = program["gene_sets"], program["genes"]
    assert isinstance(sets, Sequence)
    assert isinstance(genes, Sequence)
    text = str(sets[0]["name"]) if sets else ", ".join(genes[:3])
    return text if len(text) <= 32 else text[:31] + "…"


def _programs(network: GeneNetwork) -> str:
    rows = [("program", "genes", "gene sets (false discovery rate)")]
    for each in network.programs:
        sets = "; ".join(f"{one['name']} ({one['q_value']:.1e})" for one in each["gene_sets"][:3])
        rows.append((str(each["program"]), f"{len(each['genes'])}: " + ", ".join(each["genes"][:12]), sets))
    return _table(rows)


def _edges(network: GeneNetwork) -> str:
    rows = [("group", "factor", "target", "sign", "weight")]
    signs = {1: "+", -1: "-", 0: ""}
    for group in network.groups:
        top = edge_rows(network.group_edges(group).head(20))
        rows += [(group, edge.tf, edge.target, signs[edge.sign], f"{edge.weight:.3f}") for edge in top]
    return _table(rows)


def _reliability(network: GeneNetwork, group: str) -> str:
    """Return the median over factors, the factors of the highest mean, and how many are close to 0."""
    kinds = network.reliability(group)
    if not kinds:
        return ""
    means = np.mean(list(kinds.values()), axis=0)
    order = np.argsort(-means, kind="stable")[:MOST_RELIABLE]
    medians = [f"{np.median(values):.2f}" for values in kinds.values()]
    rows = [(group, *kinds), ("median of all factors", *medians)]
    rows += [(network.tfs[row], *(f"{values[row]:.2f}" for values in kinds.values())) for row in order]
    return _table(rows) + f"<p>{int((means < UNRELIABLE).sum()):,} of {len(means):,} factors: below {UNRELIABLE}.</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    cells = ["<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in others]
    return "<table>" + "".join(cells) + "</table>"


def _list(facts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts) + "</ul>"


def _picture(title: str, image: str) -> str:
    return f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' src='data:image/png;base64,{image}'>"
