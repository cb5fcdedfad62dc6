"""Evaluate a network that was kept, beside known edges and the knock-outs of a screen; nothing is learned from them."""

# T transcription factors, G targets

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.assessment import MetricRow
from cytoray.tasks.networks.candidates import Candidates
from cytoray.tasks.networks.evidence import score_kinds
from cytoray.tasks.networks.judging import FEWEST_FACTORS, Product, judge_known, judge_screen
from cytoray.tasks.networks.network import GeneNetwork
from cytoray.tasks.networks.screen import ScreenConfig, read_screen
from cytoray.tasks.networks.truth import known_of


@dataclass(frozen=True)
class Known:
    """Known edges: a table, a screen, or both."""

    truth: str | None = None
    confidence: tuple[str, ...] = ("A", "B")
    screen: ScreenConfig | None = None


def evaluate_network(network: GeneNetwork, known: Known, *, group: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Score the edges of a group beside correlation alone and each kind of evidence alone, as plain JSON values.

    Raises ConfigError if nothing is known, CorpusError for a table or screen without factors of the network.
    """
    if known.truth is None and known.screen is None:
        raise ConfigError("Nothing to evaluate with.", remedy="Give --truth, --screen, or both.")
    candidates = candidates_of(network)
    weights = network.matrix("weight", group)
    kinds = next(iter(network.about["evidence"].values()))
    evidence = {kind: network.matrix(kind, group) for kind in kinds}
    metrics: dict[str, MetricRow] = {}
    details: dict[str, Any] = {}
    warnings: list[str] = []
    if len(network.group_edges(group)) < candidates.valid.sum():
        warnings.append("only the strongest edges were kept (max_edges): all other pairs count as equally weak")
    if known.truth is not None:
        edges = known_of(known.truth, candidates, confidence=known.confidence)
        if len(edges.scored) < FEWEST_FACTORS:
            raise CorpusError(
                f"{known.truth} has enough known targets of {len(edges.scored)} factors of the network; "
                f"{FEWEST_FACTORS} are needed.",
                remedy="Give a larger table, or infer a network of more genes.",
            )
        scored = score_kinds(evidence, network.reliability(group), candidates.valid)
        product = Product(weights, {}, ())
        metrics, details = judge_known(evidence, scored, product, edges, seed=seed)
    if known.screen is not None:
        effects, doubts = read_screen(known.screen, candidates)
        warnings += doubts
        if effects:
            metrics["knock_out_auroc"], details["screen"] = judge_screen(evidence, weights, effects, seed=seed)
    rows = {name: row.as_dict() for name, row in metrics.items()}
    return {"metrics": rows, "details": details, "warnings": warnings}


def candidates_of(network: GeneNetwork) -> Candidates:
    """Return the genes of a network, numbered in its own order."""
    numbers = [np.arange(len(names)) for names in (network.tfs, network.targets)]
    return Candidates(network.tfs, network.targets, *numbers)
