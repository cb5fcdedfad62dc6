"""Infer a network from cells: evidence for every pair of a factor and a target, block of targets by block.

    work = prepare_work(cells, candidates, options)
    evidence = compute_blocks(work, pieces)

Evidence that chance adds to is computed on two halves of the cells apart, and their mean is the evidence: how well
they agree is known without any known edge. Memory: the cells, sparse, over the genes of the network; factors and
targets of at most ``max_pools`` pools; and T x G values per kind of evidence. Nothing dense has a row per cell.
"""

# C cells, P pools, T transcription factors, G targets, B targets of a block

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.networks.cells import (
    Float32,
    Float64,
    Int64,
    NetworkCells,
    equal_halves,
    pools_of,
    variable_genes,
)
from cytoray.evaluation.networks.correlation import correlate
from cytoray.evaluation.networks.trees import Factors, TreeOptions
from cytoray.tasks.networks.candidates import CORRELATION, POOLED, TREES, Candidates
from cytoray.tasks.networks.evidence import HALVES, WHOLE, Block, Evidence, Kinds, join_blocks
from cytoray.tasks.networks.reading import NetworkData
from cytoray.tasks.pieces import Pieces

FEWEST_TARGETS, FEW_TARGETS = 2, 50


@dataclass(frozen=True)
class WorkOptions:
    """How evidence is computed."""

    pool_size: int = 15
    max_pools: int = 5_000
    block_size: int = 100
    trees: TreeOptions = field(default_factory=TreeOptions)

    @property
    def seed(self) -> int:
        """Seed of the halves and pools."""
        return self.trees.seed


@dataclass(frozen=True, eq=False)
class Half:
    """Half of the cells of a group."""

    name: str
    rows: Int64  # of the group's cells
    pools: sparse.csr_matrix  # (P, len(rows))


@dataclass(frozen=True, eq=False)
class Work:
    """Input of the blocks of a group of cells; it travels to Ray's tasks as a whole, once."""

    name: str  # of the group
    cells: NetworkCells  # over the T factors, then the G targets
    halves: tuple[Half, Half]
    tfs: tuple[str, ...]
    targets: tuple[str, ...]
    options: WorkOptions

    @property
    def num_blocks(self) -> int:
        """Number of blocks of targets."""
        return -(-len(self.targets) // self.options.block_size)

    @property
    def cost(self) -> float:
        """Values that trees look at, about."""
        num_pools = sum(half.pools.shape[0] for half in self.halves)
        return float(len(self.targets) * self.options.trees.num_trees * num_pools * len(self.tfs))

    @property
    def num_bytes(self) -> int:
        """Size of the arrays that travel."""
        matrices = [self.cells.expression, *(half.pools for half in self.halves)]
        return int(sum(part.nbytes for each in matrices for part in (each.data, each.indices, each.indptr)))

    def compute(self, number: int) -> Block:
        """Return the evidence for the targets of one block."""
        with threadpool_limits(1):
            return self._compute(number)

    def _compute(self, number: int) -> Block:
        size, num_tfs = self.options.block_size, len(self.tfs)
        names = self.targets[number * size : (number + 1) * size]
        tfs = self.cells.select(np.arange(num_tfs))
        targets = self.cells.select(np.arange(num_tfs + number * size, num_tfs + number * size + len(names)))
        halves = [self._compute_half(half, tfs.take(half.rows), targets.take(half.rows), names) for half in self.halves]
        return {
            WHOLE: {CORRELATION: correlate(tfs, targets)},
            HALVES: {kind: np.stack([half[kind] for half in halves]) for kind in halves[0]},
        }

    def _compute_half(self, half: Half, tfs: NetworkCells, targets: NetworkCells, names: Sequence[str]) -> Kinds:
        found = {CORRELATION: correlate(tfs, targets)}
        pooled, factors = targets.pool(half.pools), tfs.pool(half.pools)
        if self.options.pool_size > 1:
            found[POOLED] = _pearson(factors, pooled)
        found[TREES] = Factors(factors, self.tfs, self.options.trees, half.name).importances(pooled, names)
        return found


def choose_candidates(
    data: NetworkData,
    cells: NetworkCells,
    tfs: Sequence[str],
    *,
    num_targets: int,
    min_share: float,
    also: Sequence[str] = (),
) -> tuple[Candidates, list[str]]:
    """Choose the genes of a network: factors and targets that enough cells express, and warnings.

    Targets are the most variable genes, given their mean, and those of ``also`` that are expressed. Raises CorpusError
    without any factor or without targets.
    """
    expressed = cells.shares >= max(min_share, 3 / cells.num_cells)
    expressed &= cells.deviations > 0
    wanted = set(tfs)
    tf_columns = np.array([k for k, gene in enumerate(data.genes) if gene in wanted and expressed[k]], np.int64)
    if not len(tf_columns):
        raise CorpusError(
            f"{data.uri}: none of its {len(wanted)} transcription factors is expressed by {100 * min_share:g} % of the "
            "cells.",
            remedy="Lower --min-share, or name factors that are expressed with --tfs.",
        )
    targets = np.flatnonzero(expressed)
    if len(targets) > num_targets:
        targets = targets[variable_genes(cells.select(targets), num=num_targets)]
    kept_too = set(also)
    added = [column for column in np.flatnonzero(expressed).tolist() if data.genes[column] in kept_too]
    targets = np.union1d(targets, added).astype(np.int64)
    warnings = []
    if len(targets) < FEWEST_TARGETS:
        raise CorpusError(
            f"{data.uri}: {len(targets)} genes are expressed by {100 * min_share:g} % of the cells.",
            remedy="Give cells with more genes, or lower --min-share.",
        )
    if len(targets) < FEW_TARGETS or len(tf_columns) < 3:
        warnings.append(
            f"{len(tf_columns)} factors and {len(targets)} targets are few: ranks among them are not informative"
        )
    names = [tuple(data.genes[column] for column in columns) for columns in (tf_columns, targets)]
    return Candidates(names[0], names[1], tf_columns, targets), warnings


def prepare_work(cells: NetworkCells, candidates: Candidates, options: WorkOptions, *, name: str = "") -> Work:
    """Prepare the work of a group of cells: its halves with their pools, and its cells over the network's genes."""
    variable = cells.select(
        variable_genes(cells, seed=options.seed) if options.pool_size > 1 else np.empty(0, np.int64)
    )
    halves = []
    for number, rows in enumerate(equal_halves(cells.num_cells, seed=options.seed)):
        num = max(options.max_pools // 2, 1)
        with threadpool_limits(1):
            pools = pools_of(variable.take(rows), size=options.pool_size, num=num, seed=options.seed)
        halves.append(Half(f"{name} half {number}", rows, pools))
    both = cells.select(np.concatenate([candidates.tf_columns, candidates.target_columns]))
    return Work(name, both, (halves[0], halves[1]), candidates.tfs, candidates.targets, options)


def compute_blocks(
    work: Work, pieces: Pieces, *, with_ray: bool = False, advance: progress.Advance = progress.silent
) -> Evidence:
    """Compute the evidence of all blocks; those among the ``pieces`` are not computed again.

    ``with_ray``: by Ray's tasks, one per block; this process, connected to Ray, keeps the pieces.
    """
    labels = [f"{work.name} block {number} of {work.num_blocks}" for number in range(work.num_blocks)]
    todo = [number for number, label in enumerate(labels) if not pieces.has(label)]
    compute: Callable[[int], Block] = work.compute
    if with_ray and todo:
        from cytoray.tasks.networks.ray_blocks import start_blocks

        compute = start_blocks(work, todo)
    blocks = []
    for number, label in enumerate(labels):
        found, reused = pieces.compute(label, lambda number=number: compute(number))  # type: ignore[misc]
        blocks.append(found)
        advance(1, label.strip(), already=reused)
    return join_blocks(blocks)


def _pearson(first: Float32, second: Float32) -> Float32:
    """Return the correlation of columns, (T, B); 0 for a constant one."""
    centred: list[Float64] = []
    for values in (first, second):
        each = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
        lengths = np.linalg.norm(each, axis=0)
        centred.append(each / np.where(lengths > 0, lengths, np.inf))
    return np.asarray(centred[0].T @ centred[1], np.float32)
