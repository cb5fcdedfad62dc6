"""Build a network from the cells that a configuration names: evidence, weights, programs and activities."""

# C cells, T transcription factors, G targets

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray import cluster, progress
from cytoray.evaluation.networks.activity import activities
from cytoray.evaluation.networks.cells import Float32, Float64, Int64, NetworkCells, pools_of, prepare_cells
from cytoray.evaluation.networks.programs import enrich, find_programs
from cytoray.evaluation.networks.ranking import aggregate, equal_weights, learn_weights
from cytoray.evaluation.networks.similarity import set_similarity
from cytoray.evaluation.networks.trees import TreeOptions
from cytoray.tasks.gene_sets import resolve_gene_sets
from cytoray.tasks.networks.candidates import Candidates
from cytoray.tasks.networks.config import InferNetworksConfig
from cytoray.tasks.networks.evidence import HALVES, WHOLE, Evidence, join_blocks, score_kinds
from cytoray.tasks.networks.inference import Work, WorkOptions, choose_candidates, compute_blocks, prepare_work
from cytoray.tasks.networks.network import GeneNetwork, build_edges, signed_regulons
from cytoray.tasks.networks.reading import NetworkData, only_group, read_factors, read_network_data, usable_groups
from cytoray.tasks.networks.truth import known_of
from cytoray.tasks.pieces import Pieces

if TYPE_CHECKING:
    from cytoray.tasks.networks.model_evidence import ModelEvidence

GENE_SETS = "gene_sets"
NO_SETS = "none"
PAYS = 3e10  # cost of trees, some two minutes, above which Ray's start pays
MOST_POOLS_OF_PROGRAMS = 2_000
NUM_PROGRAM_COMPONENTS = 30
MOST_SETS = 10  # listed of each program


@dataclass(frozen=True, eq=False)
class Prepared:
    """Cells that were read, and the genes of their network."""

    data: NetworkData
    cells: NetworkCells
    candidates: Candidates
    warnings: tuple[str, ...]


def prepare(config: InferNetworksConfig, *, only: tuple[str, str] | None = None, also: Sequence[str] = ()) -> Prepared:
    """Read the cells and choose the genes; raises CorpusError or ConfigError for what cannot be used.

    ``only``: a column of obs and its value, such as perturbation and control, of the cells that are used. ``also``:
    genes that are targets however little they vary.
    """
    key = config.groups if only is None else only[0]
    data = read_network_data(config.data, group_key=key, max_cells=config.max_cells, seed=config.seed)
    if only is not None:
        data = only_group(data, *only)
    tfs = read_factors(config.tfs, data.genes)
    cells = prepare_cells(data.values, log_normalised=data.log_normalised)
    candidates, warnings = choose_candidates(
        data, cells, tfs, num_targets=config.num_targets, min_share=config.min_share, also=also
    )
    return Prepared(data, cells, candidates, (*data.warnings, *warnings))


def work_options(config: InferNetworksConfig) -> WorkOptions:
    """Return how the evidence of ``config`` is computed."""
    trees = TreeOptions(num_trees=-(-config.num_trees // 2), seed=config.seed)  # of each half
    return WorkOptions(config.pool_size, config.max_pools, config.block_size, trees)


def build_network(config: InferNetworksConfig, pieces: Pieces, *, about: Mapping[str, Any]) -> GeneNetwork:
    """Infer the network of the cells that ``config`` names; blocks among the ``pieces`` are not computed again.

    ``about``: entries of network.json beside those that are computed here.
    """
    started = time.monotonic()
    prepared = prepare(config)
    data, candidates = prepared.data, prepared.candidates
    groups, warnings = usable_groups(data, config.groups)
    model = None if config.model is None else open_evidence(config)
    shared, notes = static_evidence(config, candidates, model)
    works = [
        prepare_work(prepared.cells.take(rows), candidates, work_options(config), name=name)
        for name, rows in groups.items()
    ]
    found = compute_evidence(config, works, pieces)
    parts, weights, reliability = [], {}, {}
    for work in works:
        name = work.name
        evidence = found[name].with_kinds(shared)
        if model is not None:
            own = ask_model(model, prepared, groups[name], work, pieces)
            evidence = evidence.with_kinds(own.values, own.halves)
        reliability[name] = evidence.reliability(candidates.valid)
        scores = score_kinds(evidence.values, reliability[name], candidates.valid)
        weights[name] = _weights(config, scores, candidates)
        combined = aggregate(scores, weights[name])
        parts.append(build_edges(name, candidates, combined, evidence.values, num=config.max_edges))
    listed = {
        **about,
        "tfs": list(candidates.tfs),
        "targets": list(candidates.targets),
        "groups": {name: len(rows) for name, rows in groups.items()},
        "evidence": weights,
        "reliability": {name: _rounded(kinds) for name, kinds in reliability.items()},
        "programs": _programs(config, prepared, model),
        "warnings": [*prepared.warnings, *warnings, *notes],
        "settings": config.model_dump(mode="json", exclude=set(config.places)),
    }
    network = GeneNetwork(pd.concat(parts, ignore_index=True), listed)
    activity = _activity(network, data, prepared.cells, groups)
    seconds = round(time.monotonic() - started + pieces.reused_s, 1)
    return GeneNetwork(network.edges, {**listed, "seconds": seconds}, activity)


def compute_evidence(config: InferNetworksConfig, works: Sequence[Work], pieces: Pieces) -> dict[str, Evidence]:
    """Compute the evidence of each group of cells, by Ray's tasks if asked for or if it pays."""
    total = sum(work.num_blocks for work in works)
    cost = sum(work.cost for work in works)
    with_ray = config.run_on == "ray" or (config.run_on == "auto" and (cost > PAYS or cluster.is_shared()))

    def compute() -> dict[str, Evidence]:
        """Compute the blocks of all groups."""
        with progress.stage("infer", total=total, unit="blocks") as advance:
            return {work.name: compute_blocks(work, pieces, with_ray=with_ray, advance=advance) for work in works}

    if not with_ray:
        return compute()
    store = cluster.OBJECT_STORE_BYTES + sum(work.num_bytes for work in works)
    with cluster.connected(num_cpus=config.num_cpus, object_store_bytes=store):
        return compute()


def ask_model(model: ModelEvidence, prepared: Prepared, rows: Int64, work: Work, pieces: Pieces) -> Evidence:
    """Return the evidence that a model gives about each half of a group's cells, a piece each."""
    found = []
    for half in work.halves:
        own = rows[half.rows]
        work_of = lambda own=own: model.of_cells(prepared.data, own, prepared.candidates)  # noqa: E731
        found.append(pieces.compute(f"{half.name} model", work_of)[0])
    return join_blocks([{WHOLE: {}, HALVES: {kind: np.stack([each[kind] for each in found]) for kind in found[0]}}])


def static_evidence(
    config: InferNetworksConfig, candidates: Candidates, model: ModelEvidence | None = None
) -> tuple[dict[str, Float32], list[str]]:
    """Return the evidence that does not depend on cells, (T, G) each, and warnings."""
    found: dict[str, Float32] = {}
    warnings = []
    if config.gene_sets != NO_SETS:
        names = sorted({*candidates.tfs, *candidates.targets})
        sets = resolve_gene_sets(config.gene_sets).for_genes(names, min_size=2)
        similarity = set_similarity(candidates.tfs, candidates.targets, sets.members)
        if similarity.any():
            found[GENE_SETS] = similarity
        else:
            warnings.append(f"no gene set of {config.gene_sets} has two genes of the network: sets are not used")
    if model is not None:
        found |= model.of_genes(candidates)
        warnings += model.warnings(candidates)
    return found, warnings


def _weights(config: InferNetworksConfig, scores: Mapping[str, Float32], candidates: Candidates) -> dict[str, float]:
    if config.train_on is None:
        return equal_weights(scores)
    known = known_of(config.train_on, candidates)
    return learn_weights(scores, known.edges, known.valid)


def _rounded(reliability: Mapping[str, Float64]) -> dict[str, list[float]]:
    return {kind: np.round(values, 4).tolist() for kind, values in reliability.items()}


def open_evidence(config: InferNetworksConfig) -> ModelEvidence:
    """Open the model that ``config`` names."""
    from cytoray.registry.opening import open_model
    from cytoray.tasks.networks.model_evidence import ModelEvidence

    assert config.model is not None
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    return ModelEvidence(opened.bundle, num_cells=-(-config.knock_out_cells // 2), seed=config.seed)  # of each half


def _programs(config: InferNetworksConfig, prepared: Prepared, model: ModelEvidence | None) -> list[dict[str, Any]]:
    """Group the targets by the model's vectors of genes or, without a model, by how they vary together."""
    from sklearn.utils.extmath import randomized_svd

    names = prepared.candidates.targets
    points: Float64 | Float32 | None = None if model is None else model.points(names)
    with threadpool_limits(1):
        if points is None:
            pools = pools_of(prepared.cells, size=config.pool_size, num=MOST_POOLS_OF_PROGRAMS, seed=config.seed)
            values = prepared.cells.select(prepared.candidates.target_columns).pool(pools)
            num = min(NUM_PROGRAM_COMPONENTS, *values.shape)
            _, sizes, axes = randomized_svd(values - values.mean(axis=0), num, random_state=config.seed)
            points = np.asarray(axes.T * sizes, np.float64)
        numbers = find_programs(points, seed=config.seed)
    sets = (
        {}
        if config.gene_sets == NO_SETS
        else resolve_gene_sets(config.gene_sets).for_genes(prepared.data.genes).members
    )
    background = frozenset(names)
    found = []
    for number in range(int(numbers.max(initial=-1)) + 1):
        own = np.flatnonzero(numbers == number)
        likeness = points[own] @ points[own].mean(axis=0)
        genes = [names[place] for place in own[np.argsort(-likeness, kind="stable")]]  # the most typical first
        rows = [vars(each) for each in enrich(genes, sets, background)[:MOST_SETS]] if sets else []
        found.append({"program": number, "genes": genes, "gene_sets": rows})
    return found


def _activity(
    network: GeneNetwork, data: NetworkData, cells: NetworkCells, groups: Mapping[str, Int64]
) -> pd.DataFrame:
    """Return the activity of each factor in each cell of a group, by the group's own edges."""
    columns = {gene: column for column, gene in enumerate(data.genes)}
    expression = sparse.csr_matrix(cells.expression[:, [columns[gene] for gene in network.targets]])
    order = np.concatenate(list(groups.values()))
    parts = [
        activities(expression[rows], signed_regulons(network, name, network.targets)) for name, rows in groups.items()
    ]
    names = [data.names[row] for row in order]
    return pd.DataFrame(np.concatenate(parts), index=pd.Index(names, name="cell"), columns=list(network.tfs))
