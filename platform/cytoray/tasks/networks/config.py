"""Configuration of the inference of gene networks; it imports little, as its keys are options of commands."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cytoray.config import Config, Location
from cytoray.tasks.assessing import CACHE_FOLDER
from cytoray.tracking import TrackingConfig

FACTORS = (
    "Text file of transcription factors, one symbol or Ensembl id per line; default: human genes with the Gene "
    "Ontology's DNA-binding transcription factor activity."
)
GENE_SETS = "Gene sets whose sharing is evidence: a packaged collection, a .gmt file, or `none`."


class InferNetworksConfig(Config):
    """Configuration of the inference of gene networks."""

    # Without an effect on the result: a result is found again whatever they are.
    places: ClassVar[frozenset[str]] = frozenset({"out", "tracking", "cache_folder", "again", "run_on", "num_cpus"})
    inputs: ClassVar[tuple[str, ...]] = ("data", "tfs", "train_on")  # keys that name files

    kind: Literal["infer-networks"] = Field("infer-networks", description="Which stage this file configures.")
    data: Location = Field(description="File of cells: a path or s3://…")
    out: Location = Field("network", description="Folder or s3:// prefix for the network; network.json is last.")
    groups: str | None = Field(
        None, min_length=1, description="Column of obs, such as cell_type: a network of each group of cells."
    )
    tfs: Location | None = Field(None, description=FACTORS)
    model: str | None = Field(
        None,
        min_length=1,
        description="Transformer that adds evidence (in-silico knock-outs, gene embeddings, attention): a bundle or "
        "public checkpoint, run:NAME or models:/NAME@ALIAS.",
    )
    gene_sets: str = Field("go_bp", min_length=1, description=GENE_SETS)
    train_on: Location | None = Field(
        None, description="Table of known edges that weights of evidence are learned from; default: equal weights."
    )
    num_targets: int = Field(1_500, ge=1, description="Maximum number of targets: the most variable genes.")
    min_share: float = Field(0.03, ge=0, lt=1, description="Least share of cells that express a gene of the network.")
    max_cells: int = Field(100_000, ge=20, description="Maximum number of cells; of more, a random sample is used.")
    max_edges: int = Field(1_000_000, ge=1, description="Maximum number of edges that are written, of each group.")
    pool_size: int = Field(15, ge=1, description="Cells that are averaged, each with its nearest ones; 1: no pooling.")
    max_pools: int = Field(5_000, ge=20, description="Maximum number of such averages that trees are grown on.")
    num_trees: int = Field(200, ge=1, description="Boosted trees per target, half of them of each half of the cells.")
    block_size: int = Field(100, ge=1, description="Targets per block: the unit of resuming and of Ray's tasks.")
    knock_out_cells: int = Field(200, ge=1, description="Cells in which the model's knock-out of a factor is computed.")
    seed: int = Field(0, ge=0, description="Seed of samples and trees.")
    run_on: Literal["auto", "here", "ray"] = Field(
        "auto", description="Where blocks are computed: in this process or by Ray's tasks; auto: by Ray if it pays."
    )
    num_cpus: int = Field(2, ge=1, description="Logical CPUs when Ray is started here.")
    store: Location | None = Field(None, description="Root of all data of cytoray, for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, for models:/NAME@ALIAS.")
    cache_folder: Location = Field(CACHE_FOLDER, description="Local folder for bundles from MLflow or s3://.")
    again: bool = Field(False, description="Infer again although `out` has a network, which is then replaced.")
