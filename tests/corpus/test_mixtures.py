"""Human and mouse cells in one matrix: only human genes of human cells are kept, however the file marks them."""

# C cells, G genes

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import CheckConfig, IngestConfig, RuleConfig, SourceConfig
from cytoray.corpus.reading import read_cells
from cytoray.corpus.validate import ValidateConfig, validate

SYMBOLS = [
    "CD3D", "CD3E", "IL7R", "LYZ", "MS4A1", "CD79A", "NKG7", "CD14", "CST3", "CD8A", "CCR7", "S100A8", "S100A9", "CD74",
    "TYROBP", "ACTB", "GAPDH", "RPLP0", "RPS6", "EEF2",
]  # fmt: skip
IDS = [f"ENSG{number:011d}" for number in (
    167286, 198851, 168685, 90382, 156738, 105369, 105374, 170458, 101439, 153563, 126353, 143546, 163220, 19582, 11600,
    75624, 111640, 89157, 137154, 167658,
)]  # fmt: skip
MOUSE_SYMBOLS = [name.capitalize() for name in SYMBOLS]
MOUSE_IDS = [gene_id.replace("ENSG", "ENSMUSG") for gene_id in IDS]
NUM_CELLS, HUMAN, DOUBLETS = 60, 30, 5
BARCODES = [f"CELL{row:02d}-1" for row in range(NUM_CELLS)]


@pytest.fixture(scope="module")
def counts_CG() -> np.ndarray:
    """Human cells with a trace of mouse, mouse cells with a trace of human, and five doublets at the end."""
    rng = np.random.default_rng(0)
    human, mouse = rng.poisson(6.0, (2, NUM_CELLS, len(SYMBOLS)))
    mouse[:HUMAN, 1:] = 0
    mouse[:HUMAN, 0] = 2
    human[HUMAN:-DOUBLETS, 1:] = 0
    human[HUMAN:-DOUBLETS, 0] = 2
    return np.hstack([human, mouse]).astype(np.float32)


def h5ad(path: Path, counts: np.ndarray, names: list[str], **var: list[str]) -> str:
    adata = anndata.AnnData(sparse.csr_matrix(counts), pd.DataFrame(index=BARCODES), pd.DataFrame(var, index=names))
    adata.write_h5ad(path)
    return str(path)


def prefixed(names: list[str], others: list[str], prefixes: tuple[str, str]) -> list[str]:
    return [*(prefixes[0] + name for name in names), *(prefixes[1] + name for name in others)]


def tenx_h5(path: Path, counts: np.ndarray) -> str:
    matrix = sparse.csr_matrix(counts.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": counts.shape[::-1]}
        for name, values in {**arrays, "barcodes": np.array(BARCODES, "S")}.items():
            group[name] = values
        features = {
            "id": prefixed(IDS, MOUSE_IDS, ("GRCh38_", "mm10___")),
            "name": prefixed(SYMBOLS, MOUSE_SYMBOLS, ("GRCh38_", "mm10___")),
            "feature_type": ["Gene Expression"] * counts.shape[1],
            "genome": ["GRCh38"] * len(IDS) + ["mm10"] * len(IDS),
        }
        for name, texts in features.items():
            group[f"features/{name}"] = np.array(texts, "S")
    return str(path)


def tenx_h5_of_two_groups(path: Path, counts: np.ndarray) -> str:
    """Cell Ranger 2: one group per genome, each with its own barcodes."""
    width = len(SYMBOLS)
    cells = {"hg19": slice(0, NUM_CELLS), "mm10": slice(HUMAN, NUM_CELLS)}
    with h5py.File(path, "w") as file:
        for genome, names, ids, place in (("hg19", SYMBOLS, IDS, 0), ("mm10", MOUSE_SYMBOLS, MOUSE_IDS, width)):
            matrix = sparse.csr_matrix(counts[cells[genome], place : place + width].astype(np.int32))
            group = file.create_group(genome)
            group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
            group["shape"] = (width, matrix.shape[0])
            group["barcodes"] = np.array(BARCODES[cells[genome]], "S")
            group["gene_names"], group["genes"] = np.array(names, "S"), np.array(ids, "S")
    return str(path)


def mtx(folder: Path, counts: np.ndarray) -> str:
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sparse.coo_matrix(counts.T.astype(int)))
    names = prefixed(SYMBOLS, MOUSE_SYMBOLS, ("hg19_", "mm10_"))
    ids = prefixed(IDS, MOUSE_IDS, ("hg19_", "mm10_"))
    lines = "".join(f"{gene_id}\t{name}\tGene Expression\n" for gene_id, name in zip(ids, names, strict=True))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{name}\n" for name in BARCODES).encode()))
    return str(folder)


WRITERS: dict[str, Callable[[Path, np.ndarray], str]] = {
    "prefixed symbols": lambda folder, counts: h5ad(
        folder / "a.h5ad", counts, prefixed(SYMBOLS, MOUSE_SYMBOLS, ("GRCh38_", "mm10___"))
    ),
    "prefixes of Seurat": lambda folder, counts: h5ad(
        folder / "a.h5ad", counts, prefixed(SYMBOLS, MOUSE_SYMBOLS, ("HUMAN-", "MOUSE-"))
    ),
    "prefixed ids": lambda folder, counts: h5ad(
        folder / "a.h5ad", counts, prefixed(IDS, MOUSE_IDS, ("hg19_", "mm10_")),
        gene_name=prefixed(SYMBOLS, MOUSE_SYMBOLS, ("hg19_", "mm10_")),
    ),
    "column of genomes, names in capitals": lambda folder, counts: h5ad(
        folder / "a.h5ad", counts, [*SYMBOLS, *(f"{name}-1" for name in SYMBOLS)],
        genome=["GRCh38"] * len(SYMBOLS) + ["GRCm39"] * len(SYMBOLS),
    ),
    "plain symbols": lambda folder, counts: h5ad(folder / "a.h5ad", counts, [*SYMBOLS, *MOUSE_SYMBOLS]),
    "plain ids": lambda folder, counts: h5ad(folder / "a.h5ad", counts, [*IDS, *MOUSE_IDS]),
    "symbols with ids": lambda folder, counts: h5ad(
        folder / "a.h5ad", counts, [*SYMBOLS, *MOUSE_SYMBOLS], gene_ids=[*IDS, *MOUSE_IDS]
    ),
    "10x h5": lambda folder, counts: tenx_h5(folder / "a.h5", counts),
    "10x h5 of Cell Ranger 2": lambda folder, counts: tenx_h5_of_two_groups(folder / "a.h5", counts),
    "10x mtx": lambda folder, counts: mtx(folder / "a", counts),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_cells_and_genes_of_the_other_species_are_left_out(kind: str, counts_CG, tmp_path, vocabulary):
    path = WRITERS[kind](tmp_path, counts_CG)
    (file,) = validate([SourceConfig(uri=path)], options=ValidateConfig()).files
    assert file.description.species == "human and mouse"
    assert (file.profile.num_kept, file.profile.dropped) == (HUMAN, {"mixed_species": NUM_CELLS - HUMAN})
    assert file.profile.findings["mixed_species"].startswith(
        "20 genes of another species (mouse) among 20 human genes are left out"
    )
    assert file.profile.genes is not None
    assert (file.profile.genes.num_matched, file.profile.genes.num_other_species) == (20, 20)
    found = read_cells(SourceConfig(uri=path))
    assert found.names == tuple(BARCODES[:HUMAN])
    dense = np.zeros((HUMAN, vocabulary.size), np.float32)
    rows = np.repeat(np.arange(HUMAN), np.diff(found.cells.indptr))
    dense[rows, found.cells.gene_ids] = found.cells.values
    columns = [vocabulary.index[name] for name in SYMBOLS]
    assert np.array_equal(dense[:, columns], counts_CG[:HUMAN, :20])
    assert dense.sum() == counts_CG[:HUMAN, :20].sum()


def test_an_answer_for_each_cell_has_no_genes_for_those_of_the_other_species(counts_CG, tmp_path):
    path = WRITERS["plain symbols"](tmp_path, counts_CG)
    found = read_cells(SourceConfig(uri=path), keep_empty=True)
    assert found.names == tuple(BARCODES)
    assert (found.cells.num_genes_per_cell[HUMAN:] == 0).all()
    assert (found.cells.num_genes_per_cell[:HUMAN] > 0).all()


def test_warn_keeps_the_human_genes_of_all_cells_and_the_share_can_be_set(counts_CG, tmp_path):
    path = WRITERS["10x h5"](tmp_path, counts_CG)
    checks = CheckConfig(rules=RuleConfig(mixed_species="warn", duplicate_cell="off"))
    (file,) = validate([SourceConfig(uri=path)], options=ValidateConfig(checks=checks)).files
    assert (file.profile.num_kept, file.profile.warned) == (NUM_CELLS, {"mixed_species": NUM_CELLS - HUMAN})
    checks = CheckConfig(min_human_share=0.3)
    (file,) = validate([SourceConfig(uri=path)], options=ValidateConfig(checks=checks)).files
    assert file.profile.num_kept == HUMAN + DOUBLETS


def test_an_ingest_leaves_the_same_cells_out(counts_CG, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
    source = SourceConfig(uri=WRITERS["10x mtx"](tmp_path, counts_CG))
    config = IngestConfig(store=str(tmp_path / "store"), corpus="cells", sources=(source,), rows_per_task=16)
    (record,) = ingest_module.ingest(config).manifest.sources
    assert (record.num_kept_cells, record.dropped) == (HUMAN, {"mixed_species": NUM_CELLS - HUMAN})


def test_a_file_of_mouse_cells_is_refused_as_before(counts_CG, tmp_path):
    for number, names in enumerate((MOUSE_SYMBOLS, MOUSE_IDS, [f"mm10_{name}" for name in MOUSE_SYMBOLS])):
        path = h5ad(tmp_path / f"{number}.h5ad", counts_CG[:, 20:], names)
        (refused,) = validate([SourceConfig(uri=path)], options=ValidateConfig()).quarantined
        assert refused.rule == "wrong_species"
        assert "these are mouse genes" in refused.reason


def test_mouse_cells_whose_genes_were_mapped_to_human_orthologs_are_read(counts_CG, tmp_path):
    path = h5ad(tmp_path / "a.h5ad", counts_CG[:, 20:], MOUSE_SYMBOLS, ensembl_id=MOUSE_IDS, ortholog=SYMBOLS)
    source = SourceConfig(uri=path, gene_column="ortholog")
    (file,) = validate([source], options=ValidateConfig()).files
    assert file.profile.genes is not None
    assert (file.description.species, file.profile.genes.num_matched) == ("human", 20)


def test_a_single_human_genome_changes_nothing(counts_CG, tmp_path):
    path = h5ad(
        tmp_path / "a.h5ad", counts_CG[:, :20], [f"GRCh38_{name}" for name in SYMBOLS], genome=["GRCh38"] * len(SYMBOLS)
    )
    (file,) = validate([SourceConfig(uri=path)], options=ValidateConfig()).files
    assert file.description.species == "human"
    assert "mixed_species" not in file.profile.findings
    assert file.profile.num_kept == NUM_CELLS - sum(file.profile.dropped.values())
    assert "mixed_species" not in file.profile.dropped
