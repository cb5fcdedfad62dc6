"""Infer the gene network of a file of cells, as a stage: one that was killed continues, a rerun finds its result."""

from __future__ import annotations

import logging
from typing import Any

from cytoray import storage
from cytoray.config import build_from
from cytoray.errors import ConflictError
from cytoray.stages.assess import check_out
from cytoray.stages.assess_key import find_key
from cytoray.tasks.networks.building import build_network
from cytoray.tasks.networks.config import InferNetworksConfig
from cytoray.tasks.networks.network import MANIFEST, GeneNetwork, find_network, save_network
from cytoray.tasks.networks.page import render_network
from cytoray.tasks.pieces import Pieces

PIECES = ".pieces"  # folder in `out`
logger = logging.getLogger(__name__)


def infer_networks(data: str, **settings: Any) -> GeneNetwork:
    """Infer the gene network of a file of cells with the keys of its configuration, and return it.

    ``cytoray.infer_networks("cells.h5ad", groups="cell_type", out="network")`` writes edges.parquet, activity.parquet,
    network.graphml, report.html and network.json into ``out``; called again with the same arguments it returns that
    network, or continues. Raises ConfigError for an unknown key, CorpusError for cells that cannot be used,
    ConflictError if ``out`` has another network.
    """
    return run_inference(build_from(InferNetworksConfig, {"data": data, **settings}, source="infer_networks()"))


def run_inference(config: InferNetworksConfig) -> GeneNetwork:
    """Infer a network and write it, or return that of the same data, model and settings in ``out``.

    Finished blocks are kept in ``out`` until the network is written.
    """
    check_out(config.out)  # before anything is read
    key = find_key("networks", config)
    pieces = Pieces(storage.join(config.out, PIECES), key.digest)
    if not config.again and (known := find_network(config.out, key=key.digest)) is not None:
        pieces.remove()  # it may have been killed before it did
        logger.info("%s: the network of these data and settings is there; --again infers it again", config.out)
        return known
    if not config.again and storage.exists(storage.join(config.out, MANIFEST)):
        raise ConflictError(
            f"{config.out} has the network of other data or settings.",
            remedy="Choose another folder with --out, or replace it with --again.",
        )
    about = {"uri": config.data, "key": key.digest, "model": config.model, "model_digest": key.model_digest}
    network = build_network(config, pieces, about=about)
    save_network(network, config.out, page=render_network(network))
    pieces.remove()
    return network


def summarise(network: GeneNetwork, config: InferNetworksConfig) -> dict[str, Any]:
    """Return what is printed of a network: sizes, weights of evidence, settings and warnings."""
    long = ("tfs", "targets", "programs", "files")
    about = {key: value for key, value in network.about.items() if key not in long}
    sizes = {"num_tfs": len(network.tfs), "num_targets": len(network.targets), "num_edges": len(network.edges)}
    return {**about, "out": config.out, **sizes, "num_programs": len(network.programs)}
