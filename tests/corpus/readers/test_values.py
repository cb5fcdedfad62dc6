"""What values are taken for, and which matrix of several is read."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.values import Judged, choose_matrix, judge_values, sample_ranges
from cytoray.errors import CorpusError

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def test_samples_are_spread_from_the_first_row_to_the_last():
    for num_rows in (0, 1, 63, 64, 65, 767, 768, 769, 5_000, 10**6):
        ranges = sample_ranges(num_rows)
        rows = [row for start, stop in ranges for row in range(start, stop)]
        assert rows == sorted(set(rows))
        assert len(rows) == min(num_rows, 768)
        if rows:
            assert (rows[0], rows[-1]) == (0, num_rows - 1)
            assert max(np.diff(rows), default=1) <= max(1, num_rows // 11)


def judge_by(kinds: dict[str, str], *, empty: tuple[str, ...] = ()):
    asked: list[str] = []

    def judge(name: str) -> Judged:
        asked.append(name)
        return Judged(kinds[name], name in empty)

    return judge, asked


@pytest.mark.parametrize(
    ("num_genes", "kinds", "chosen"),
    [
        ({"X": 9, "raw.X": 9}, {"X": "counts", "raw.X": "counts"}, "X"),
        ({"X": 2, "raw.X": 9}, {"X": "counts", "raw.X": "counts"}, "raw.X"),  # X holds variable genes only
        ({"X": 2, "raw.X": 9}, {"X": "counts", "raw.X": "recoverable"}, "X"),
        ({"X": 9, "layers/a": 9}, {"X": "recoverable", "layers/a": "near_counts"}, "layers/a"),
        (
            {"X": 9, "layers/a": 9, "layers/counts": 9},
            {"X": "expression", "layers/a": "counts", "layers/counts": "counts"},
            "layers/counts",
        ),
        (
            {"X": 9, "layers/spliced": 9, "layers/unspliced": 9},
            {"X": "recoverable", "layers/spliced": "counts", "layers/unspliced": "counts"},
            "X",
        ),
        (
            {"layers/spliced": 9, "layers/ambiguous": 9},
            {"layers/spliced": "counts", "layers/ambiguous": "counts"},
            "layers/spliced",
        ),
        ({"X": 9, "layers/scaled": 9}, {"X": "expression", "layers/scaled": "negative"}, "X"),
    ],
)
def test_counts_of_all_genes_come_first(num_genes: dict, kinds: dict, chosen: str):
    judge, _ = judge_by(kinds)
    assert choose_matrix(num_genes, judge) == chosen


def test_no_more_matrices_are_looked_at_than_needed():
    judge, asked = judge_by({"X": "counts", "layers/a": "counts"})
    assert choose_matrix({"X": 3, "layers/a": 3}, judge) == "X"
    assert asked == ["X"]


def test_an_empty_matrix_loses_to_one_with_values():
    judge, _ = judge_by({"X": "counts", "layers/a": "expression"}, empty=("X",))
    assert choose_matrix({"X": 3, "layers/a": 3}, judge) == "layers/a"


def test_raw_counts_of_all_genes_are_read_rather_than_those_of_some(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(0)
    adata = build_adata(planted)
    adata.raw = adata
    adata = adata[:, :50].copy()
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert (reader.matrix, reader.describe().num_genes) == ("raw.X", 300)
        assert any("there are also X" in note for note in reader.describe().notes)


def test_a_layer_of_zeros_is_no_choice(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(1)
    adata = build_adata(planted, matrix=sparse.csr_matrix((300, 300), dtype=np.float32))
    adata.layers["norm"] = sparse.csr_matrix(planted.log_normalised())
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert (reader.matrix, reader.value_kind) == ("layers/norm", "recoverable")


@pytest.mark.parametrize("value", [1.0, 7.0])
def test_presence_and_absence_loses_to_counts(value: float, plant, build_adata, save, open_reader, tmp_path):
    planted = plant(4)
    adata = build_adata(planted, matrix=sparse.csr_matrix((planted.counts_CG > 0) * np.float32(value)))
    alone = save(adata, tmp_path / "alone.h5ad")
    for name, layer in (("umis", planted.counts_CG), ("normalised", planted.log_normalised())):
        adata.layers[name] = sparse.csr_matrix(layer)
        with open_reader(save(adata, tmp_path / f"{name}.h5ad")) as reader:
            assert reader.matrix == f"layers/{name}"
            notes = reader.describe().notes
            assert f"layers/{name} was chosen; there are also X (all sampled values are {value:g})" in notes
        del adata.layers[name]
    with open_reader(alone) as reader:
        assert reader.matrix == "X"
        assert any(f"X (all sampled values are {value:g}): " in note for note in reader.describe().notes)


def test_tables_of_further_counts_are_named_if_they_are_not_read(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(5)
    adata = build_adata(planted)
    rng = np.random.default_rng(0)
    adata.obsm["protein_counts"] = rng.poisson(3, (300, 4)).astype(np.float32)
    adata.obsm["guides"] = pd.DataFrame(rng.poisson(1, (300, 2)), index=adata.obs_names, columns=["g1", "g2"])
    adata.obsm["X_pca"] = rng.normal(size=(300, 5))
    adata.obsm["factors"] = rng.normal(size=(300, 5))
    adata.obsm["spatial"] = rng.integers(0, 99, (300, 2))
    adata.uns["protein_names"] = np.array(["CD3", "CD4", "CD8", "CD19"])
    path = save(adata, tmp_path / "a.h5ad")
    with open_reader(path) as reader:
        notes = [note for note in reader.describe().notes if "obsm" in note]
    assert notes == [
        "obsm/guides (2 features: g1, g2) is not read; sources.modalities can name it",
        "obsm/protein_counts (4 features: CD3, CD4, CD8, …) is not read; sources.modalities can name it",
    ]
    with open_reader(path, modalities=(ModalityConfig(name="protein", matrix="obsm/protein_counts"),)) as reader:
        assert [note for note in reader.describe().notes if "obsm" in note] == notes[:1]


def test_counts_with_float_noise_are_near_counts(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(2)
    noise = np.random.default_rng(0).uniform(-9e-4, 9e-4, planted.counts_CG.shape)
    values = np.where(planted.counts_CG > 0, planted.counts_CG + noise, 0).astype(np.float32)
    for layout in (sparse.csr_matrix, sparse.csc_matrix, np.asarray):
        path = save(build_adata(planted, matrix=layout(values)), tmp_path / f"{layout.__name__}.h5ad")
        with open_reader(path) as reader:
            assert reader.value_kind == "near_counts"
            assert np.array_equal(reader.read_rows(0, 300).toarray(), values)  # rounded by the checks, not here
    assert judge_values(sparse.csr_matrix(planted.counts_CG + np.float32(0.0015))) == "expression"


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_the_kind_is_told_for_every_layout(layout, plant, build_adata, save, open_reader, tmp_path):
    planted = plant(3)
    normal = planted.log_normalised()
    kinds = {
        "counts": planted.counts_CG,
        "recoverable": normal,
        "expression": normal * np.random.default_rng(1).uniform(0.5, 2, 300),
        "negative": normal - normal.mean(axis=0),
    }
    for kind, values in kinds.items():
        path = save(build_adata(planted, matrix=layout(values.astype(np.float32))), tmp_path / f"{kind}.h5ad")
        with open_reader(path) as reader:
            assert reader.describe().value_kind == kind


# --- genes


@pytest.mark.parametrize(
    ("index", "columns", "names_from", "ids_from"),
    [
        ("symbol", {}, "index", None),
        ("symbol", {"gene_ids": "ensembl"}, "index", "gene_ids"),
        ("symbol", {"gene_ids": "symbol"}, "index", None),
        ("ensembl", {}, "index", None),
        ("ensembl", {"feature_name": "symbol"}, "feature_name", "index"),
        ("versioned", {"gene_symbols": "symbol"}, "gene_symbols", "index"),
        ("number", {"feature_name": "symbol", "feature_id": "ensembl"}, "feature_name", "feature_id"),
        ("number", {"feature_id": "ensembl"}, "index", "feature_id"),
    ],
)
def test_names_and_ids_of_genes_are_found(
    index, columns, names_from, ids_from, plant, build_adata, save, open_reader, tmp_path
):
    planted = plant(4)
    ids = [f"ENSG{i:011d}" for i in range(300)]
    values = {
        "symbol": planted.genes,
        "ensembl": ids,
        "versioned": [f"{gene}.3" for gene in ids],
        "number": [str(i) for i in range(300)],
    }
    adata = build_adata(planted, var_names=values[index])
    for name, kind in columns.items():
        adata.var[name] = values[kind]
    found = {"index": values[index], **{name: values[kind] for name, kind in columns.items()}}
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert reader.gene_names == found[names_from]
        assert reader.ensembl_ids == (None if ids_from is None else found[ids_from])


def test_a_gene_without_a_symbol_keeps_its_id(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(5)
    adata = build_adata(planted, var_names=[f"ENSG{i:011d}" for i in range(300)])
    adata.var["feature_name"] = [None, *planted.genes[1:]]
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert reader.gene_names == ["ENSG00000000000", *planted.genes[1:]]


# --- real files


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the real data are not on this machine ({DATA / name})")
    return DATA / name


@pytest.mark.parametrize(
    "name",
    [
        "cardio_day2", "celltypist_demo", "gasperini_k562", "kang_ifnb", "mouse_sln", "papalexi_visible",
        "pbmc10k_200cells", "pbmc10k_cite", "pbmc3k", "pbmc5k_v3", "pbmc_donor_a", "pbmc_integration_visible",
    ],
)  # fmt: skip
def test_real_files_are_those_of_anndata(name: str, open_reader):
    path = real(f"{name}.h5ad")
    expected = anndata.read_h5ad(path)
    with open_reader(path) as reader:
        description = reader.describe()
        assert (description.num_cells, description.num_genes) == expected.shape
        assert (description.value_kind, description.id_type) == ("counts", "symbol")
        assert description.species == ("mouse" if name == "mouse_sln" else "human")
        assert reader.gene_names == list(expected.var_names)
        assert (reader.read_rows(0, expected.n_obs) != sparse.csr_matrix(expected.X)).nnz == 0
        pd.testing.assert_index_equal(reader.obs.index, expected.obs_names, check_names=False)


def test_a_real_file_with_float_noise_is_near_counts(open_reader, tmp_path):
    adata = anndata.read_h5ad(real("celltypist_demo.h5ad"))
    adata.X.data = adata.X.data + np.random.default_rng(0).normal(0, 1e-6, adata.X.nnz)
    adata.write_h5ad(tmp_path / "noisy.h5ad")
    with open_reader(tmp_path / "noisy.h5ad") as reader:
        assert reader.describe().value_kind == "near_counts"


def test_a_real_file_cut_short_or_without_x_is_one_line(open_reader, tmp_path):
    whole = real("pbmc3k.h5ad").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.h5ad").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CorpusError, match="truncated") as caught:
            open_reader(tmp_path / "cut.h5ad")
        assert "\n" not in str(caught.value)
