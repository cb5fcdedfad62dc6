"""The Python face: what goes in unchanged, what comes out the same whatever the company, and mistakes told by name."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from cytoray import storage
from cytoray.api import plotting, scGPT, scGPTConfig, scGPTDataset, scGPTFineTuningModel
from cytoray.api.variable_genes import select_genes
from cytoray.errors import ConfigError, CorpusError, CytorayError, ModelError, NotFoundError
from cytoray.evaluation.variable_genes import smooth
from cytoray.model.bundle import load_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.model.public_checkpoint import save_public_checkpoint
from cytoray.tokens.packed import pack_rows, unpack

MakeAnnData = Callable[..., anndata.AnnData]
PBMC3K = Path(__file__).parents[3] / "shared" / "data" / "pbmc3k.h5ad"
REDUCED = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
SMALL = {"nlayers": 2, "nheads": 4, "embsize": 64, "d_hid": 64}


def _embed(face: scGPT, cells: Any, **options: Any) -> np.ndarray:
    return face.get_embeddings(face.process_data(cells, **options))


def _reconfigured(face: scGPT, **changes: Any) -> scGPT:
    return scGPT.from_bundle(face.bundle, configurer=scGPTConfig(**changes))


def _with_value(adata: anndata.AnnData, value: float) -> anndata.AnnData:
    """One value of cell c7, gene CD14, replaced."""
    dense = adata.X.toarray()
    dense[7, list(adata.var_names).index("CD14")] = value
    return anndata.AnnData(sparse.csr_matrix(dense), obs=adata.obs, var=adata.var)


# --- the model card ---


def test_the_model_card_embeds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on the file's age
        adata = anndata.read_h5ad(REDUCED).raw.to_adata()[:50].copy()  # X of the file is scaled
    with pytest.warns(UserWarning, match="RANDOM weights.*model="):
        scgpt = scGPT(configurer=scGPTConfig(batch_size=10, **SMALL))
    data = scgpt.process_data(adata, use_raw_counts=False)  # log-normalised: bins depend on ranks only
    embeddings = scgpt.get_embeddings(data)
    assert embeddings.shape == (50, 64)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert sum(data.report.matched.values()) > 700
    assert data.obs_names == tuple(adata.obs_names)
    whole = scgpt.process_data(REDUCED, use_raw_counts=False, matrix="raw.X")
    np.testing.assert_allclose(scgpt.get_embeddings(whole.take(np.arange(50))), embeddings, atol=1e-5, rtol=0)
    with pytest.raises(CorpusError, match=r"is negative.*raw\.X"):
        scgpt.process_data(REDUCED, use_raw_counts=False, matrix="X")


@pytest.mark.skipif(not PBMC3K.exists(), reason=f"{PBMC3K} is not here: the real cells were NOT checked")
def test_real_counts_embed_the_same_in_any_company():
    adata = anndata.read_h5ad(PBMC3K)[:60].copy()
    with pytest.warns(UserWarning, match="RANDOM"):
        face = scGPT(scGPTConfig(**SMALL))
    data = face.process_data(adata)
    assert data.report.species == "human"
    assert data.report.matched["symbol"] > 12_000
    expected = face.get_embeddings(data)
    assert np.isfinite(expected).all()
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(60), rng.permutation(adata.n_vars)
    np.testing.assert_allclose(_embed(face, adata[cells]), expected[cells], atol=1e-5, rtol=0)
    np.testing.assert_allclose(_embed(face, adata[:, genes]), expected, atol=1e-5, rtol=0)


# --- results do not depend on company, order or layout ---


@pytest.mark.parametrize("emb_mode", ["cell", "cls"])
def test_batch_size_order_and_dtype_change_nothing(face: scGPT, make_adata: MakeAnnData, emb_mode: str):
    adata = make_adata()
    expected = _embed(_reconfigured(face, emb_mode=emb_mode), adata)
    assert np.ptp(expected, axis=0).max() > 0.05
    for batch_size in (1, 7, 64):
        got = _embed(_reconfigured(face, emb_mode=emb_mode, batch_size=batch_size), adata)
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    face = _reconfigured(face, emb_mode=emb_mode)
    rng = np.random.default_rng(1)
    cells, genes = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    np.testing.assert_allclose(_embed(face, adata[cells].copy()), expected[cells], atol=1e-5, rtol=0)
    np.testing.assert_allclose(_embed(face, adata[:, genes].copy()), expected, atol=1e-5, rtol=0)
    for kind in (np.int32, np.float64, np.uint8):
        other = make_adata(X=adata.X.astype(kind))
        np.testing.assert_allclose(_embed(face, other), expected, atol=1e-5, rtol=0)


def test_the_mean_leaves_cls_and_padding_out(face: scGPT, make_adata: MakeAnnData):
    data = face.process_data(make_adata())
    states = _reconfigured(face, emb_mode="gene").get_embeddings(data)
    means = np.stack([np.mean(np.stack(list(cell)), axis=0) for cell in states])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(face.get_embeddings(data), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_in_memory_backed_view_and_file_agree(face: scGPT, make_adata: MakeAnnData, tmp_path: Path, layout: str):
    counts = make_adata().X
    adata = make_adata(X={"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[layout])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    expected = _embed(face, make_adata())
    for cells in (adata, str(tmp_path / "cells.h5ad"), tmp_path / "cells.h5ad"):
        np.testing.assert_array_equal(_embed(face, cells), expected)
    np.testing.assert_allclose(_embed(face, adata[5:20]), expected[5:20], atol=1e-6, rtol=0)
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(_embed(face, backed), expected)
    np.testing.assert_allclose(_embed(face, backed[5:20]), expected[5:20], atol=1e-6, rtol=0)
    assert backed.isbacked
    backed.file.close()


def test_a_file_is_read_while_it_is_open_backed(face: scGPT, make_adata: MakeAnnData, tmp_path: Path):
    path = tmp_path / "cells.h5ad"
    make_adata(9).write_h5ad(path)
    backed = anndata.read_h5ad(path, backed="r")
    try:
        both = face.process_data(path), face.process_data(backed)
    finally:
        backed.file.close()
    assert np.array_equal(*(face.get_embeddings(dataset) for dataset in both))


def test_cells_and_weights_from_an_object_store(face: scGPT, make_adata: MakeAnnData, tmp_path: Path, s3_uri: str):
    adata = make_adata()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    storage.write_bytes(f"{s3_uri}/cells.h5ad", (tmp_path / "cells.h5ad").read_bytes())
    face.save(tmp_path / "saved")
    storage.upload_folder(tmp_path / "saved", f"{s3_uri}/model")
    remote = scGPT(scGPTConfig(model=f"{s3_uri}/model", cache_folder=tmp_path / "cache"))
    np.testing.assert_array_equal(_embed(remote, f"{s3_uri}/cells.h5ad"), _embed(face, adata))
    with pytest.raises(NotFoundError, match="neither a bundle"):
        scGPT(scGPTConfig(model=f"{s3_uri}/nothing"))


def test_many_chunks_are_as_one(face: scGPT, make_adata: MakeAnnData, monkeypatch: pytest.MonkeyPatch):
    adata = make_adata()
    expected = _embed(face, adata)
    monkeypatch.setattr("cytoray.api.reading.ROWS_AT_A_TIME", 7)
    np.testing.assert_array_equal(_embed(face, adata), expected)
    with pytest.raises(CorpusError, match=r"cell 'c7' \(row 7\), gene 'CD14'"):
        face.process_data(_with_value(adata, np.nan))


def test_no_cells_at_all(face: scGPT, make_adata: MakeAnnData):
    assert _embed(face, make_adata()[:0]).shape == (0, 16)


# --- the caller's object ---


def _state(adata: anndata.AnnData) -> dict[str, Any]:
    arrays = {name: getattr(adata.X, name).copy() for name in ("data", "indices", "indptr")}
    arrays |= {f"layer {name}": layer.toarray() for name, layer in adata.layers.items()}
    arrays |= {f"obsm {name}": np.array(values) for name, values in adata.obsm.items()}
    return arrays | {"obs": adata.obs.copy(), "var": adata.var.copy(), "uns": list(adata.uns)}


def _assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, after[name])
        else:
            np.testing.assert_array_equal(value, after[name])


def test_the_callers_anndata_is_never_changed(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata(layers={"other": make_adata(seed=2).X})
    adata.X.data[::3] = 0  # zeros that are stored, and columns out of order: tidied in a copy only
    first = slice(adata.X.indptr[0], adata.X.indptr[1])
    adata.X.indices[first], adata.X.data[first] = adata.X.indices[first][::-1], adata.X.data[first][::-1]
    before = _state(adata)
    for flavor in ("seurat_v3", "seurat"):
        face.process_data(adata, fine_tuning=True, n_top_genes=10, flavor=flavor)
    _embed(face, adata, use_batch_labels="kind")
    _assert_same(before, _state(adata))
    embeddings = face.embed(adata)
    after = {**before, "obsm X_scGPT": embeddings, "uns": [*before["uns"], "X_scGPT_model"]}
    _assert_same(after, _state(adata))
    face.plot_embeddings(adata, color="kind")
    _assert_same(after, _state(adata))


def test_a_backed_anndata_gets_its_obsm(face: scGPT, make_adata: MakeAnnData, tmp_path: Path):
    make_adata().write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(face.embed(backed, key="mine"), backed.obsm["mine"])
    backed.file.close()
    with pytest.raises(CorpusError, match="into an AnnData"):
        face.embed(tmp_path / "cells.h5ad")


# --- genes ---


def test_duplicate_symbols_are_summed_and_reported(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata()
    dense = adata.X.toarray()
    half = np.floor(dense[:, 3] / 2)
    parts = np.column_stack([half, np.delete(dense, 3, axis=1), dense[:, 3] - half])
    names = list(adata.var_names)
    split = anndata.AnnData(sparse.csr_matrix(parts), obs=adata.obs)
    split.var = pd.DataFrame(index=pd.Index([names[3], *names[:3], *names[4:], names[3]]))
    data = face.process_data(split)
    assert data.report.duplicates == {names[3]: [names[3], names[3]]}
    np.testing.assert_array_equal(unpack(data.cells).values, unpack(face.process_data(adata).cells).values)
    assert f"{names[3]} ({names[3]}, {names[3]})" in data.report.text()


def test_ensembl_ids_versions_and_columns(face: scGPT, make_adata: MakeAnnData):
    ids = {
        "CD3D": "ENSG00000167286",
        "MS4A1": "ENSG00000156738.15",
        "LYZ": "ENSG00000090382",
        "NKG7": "ENSG00000105374",
    }
    adata = make_adata(genes=tuple(ids))
    expected = _embed(face, adata)
    by_id = adata.copy()
    by_id.var = pd.DataFrame(index=list(ids.values()))
    data = face.process_data(by_id)
    assert data.report.matched["ensembl"] == 4
    assert data.report.id_type == "ensembl"
    np.testing.assert_array_equal(face.get_embeddings(data), expected)
    numbered = adata.copy()
    numbered.var = pd.DataFrame({"mine": list(ids)}, index=[f"x{number}" for number in range(4)])
    np.testing.assert_array_equal(_embed(face, numbered, gene_names="mine"), expected)
    numbered.var["gene_ids"] = list(ids.values())  # beside names that mean nothing
    np.testing.assert_array_equal(_embed(face, numbered), expected)
    with pytest.raises(CorpusError, match=r"no column 'symbols'.*Columns there: mine, gene_ids"):
        face.process_data(numbered, gene_names="symbols")


def test_unknown_genes_are_named_and_left_out(face: scGPT, make_adata: MakeAnnData):
    genes = make_adata().var_names
    adata = make_adata(genes=(*genes, "NOSUCHGENE"))
    data = face.process_data(adata)
    assert data.report.unknown == ("NOSUCHGENE",)
    np.testing.assert_array_equal(face.get_embeddings(data), _embed(face, adata[:, :-1].copy()))


def test_no_overlap_says_what_the_genes_are(face: scGPT, make_adata: MakeAnnData):
    mouse = make_adata(genes=("Cd3d", "Ms4a1", "Lyz2", "Nkg7"))
    with pytest.raises(ModelError, match=r"knows none of the 4 genes.*Cd3d, Ms4a1, Lyz2.*mouse genes.*symbol"):
        face.process_data(mouse)


@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat", "cell_ranger"])
def test_variable_genes_are_chosen_and_their_values_kept(face: scGPT, make_adata: MakeAnnData, flavor: str):
    adata = make_adata(200)
    data = face.process_data(adata, fine_tuning=True, n_top_genes=8, flavor=flavor)
    assert data.report.selected is not None
    assert len(data.report.selected) == 8
    assert "8 highly variable genes" in data.report.text()
    chosen = adata[:, list(data.report.selected)].copy()
    np.testing.assert_array_equal(unpack(data.cells).values, unpack(face.process_data(chosen).cells).values)
    everything = face.process_data(adata, fine_tuning=True, n_top_genes=500, flavor=flavor)
    np.testing.assert_array_equal(everything.cells.genes, face.process_data(adata).cells.genes)


@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat"])
def test_planted_genes_are_found(flavor: str):
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.geomspace(0.5, 60, 400), (300, 400)).astype(np.float32)
    planted = np.array([90, 131, 220, 333])
    counts[:, planted] *= rng.integers(0, 4, (300, 4))
    cells = pack_rows(
        sparse.csr_matrix(counts), np.arange(400, dtype=np.int32), np.arange(300, dtype=np.uint64), counts=True
    )
    np.testing.assert_array_equal(select_genes(cells, 4, flavor, counts=True), planted)


def test_seurat_v3_wants_counts(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata()
    adata.X = adata.X.log1p()
    with pytest.raises(ConfigError, match=r"seurat_v3.*flavor='seurat'"):
        face.process_data(adata, fine_tuning=True, n_top_genes=5, use_raw_counts=False)
    assert face.process_data(adata, fine_tuning=True, n_top_genes=5, flavor="seurat", use_raw_counts=False)
    with pytest.raises(ConfigError, match=r"flavor 'seurat_v9'"):
        face.process_data(adata, flavor="seurat_v9")


def test_the_trend_follows_a_parabola_exactly():
    x = np.random.default_rng(0).uniform(-2, 2, 400)
    np.testing.assert_allclose(smooth(x, 1 + x - 0.5 * x**2), 1 + x - 0.5 * x**2, atol=1e-3)


# --- cells without genes ---


def test_empty_cells_are_named_and_become_nan(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata()
    expected = _embed(face, adata)
    dense = adata.X.toarray()
    dense[[3, 9]] = 0
    holed = make_adata(X=sparse.csr_matrix(dense))
    with pytest.warns(UserWarning, match="2 of 30 cells have no gene that the model knows: c3, c9"):
        data = face.process_data(holed)
    assert data.report.empty_cells == ("c3", "c9")
    got, attentions, genes = face.get_embeddings(data, output_attentions=True, output_genes=True)
    assert np.flatnonzero(np.isnan(got).all(axis=1)).tolist() == [3, 9]
    np.testing.assert_allclose(np.delete(got, [3, 9], axis=0), np.delete(expected, [3, 9], axis=0), atol=1e-6)
    assert genes[3] == ["<cls>"]
    assert np.isnan(attentions[3]).all()
    assert len(_reconfigured(face, emb_mode="gene").get_embeddings(data)[9]) == 0
    strict = _reconfigured(face, empty_cells="error")
    for refused in (lambda: strict.process_data(holed), lambda: strict.get_embeddings(data)):
        with pytest.raises(ModelError, match="c3, c9"):
            refused()


# --- values ---


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "is not finite: nan"),
        (np.inf, "is not finite: inf"),
        (-3, "is negative: -3"),
        (1.5, "is not an integer: 1.5"),
    ],
)
def test_bad_values_are_named_by_cell_and_gene(face: scGPT, make_adata: MakeAnnData, value: float, problem: str):
    adata = _with_value(make_adata(), value)
    with pytest.raises(CorpusError, match=rf"X: the value of cell 'c7' \(row 7\), gene 'CD14' {problem}") as caught:
        face.process_data(adata)
    assert caught.value.details["gene"] == "CD14"
    assert caught.value.remedy
    if value == 1.5:
        assert "use_raw_counts=False" in caught.value.remedy
        face.process_data(adata, use_raw_counts=False)
    else:
        with pytest.raises(CorpusError, match=problem):
            face.process_data(adata, use_raw_counts=False)


def test_the_remedy_names_the_matrix_with_counts(face: scGPT, make_adata: MakeAnnData, tmp_path: Path):
    counts = make_adata()
    adata = make_adata(X=counts.X.log1p(), layers={"counts": counts.X})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for cells in (adata, tmp_path / "cells.h5ad"):
        with pytest.raises(CorpusError, match="layers/counts holds raw counts"):
            face.process_data(cells, matrix="X")
        np.testing.assert_array_equal(_embed(face, cells), _embed(face, counts))  # chosen as in an ingest
        assert face.process_data(cells).report.matrix == "layers/counts was read; there are also X"
        np.testing.assert_array_equal(_embed(face, cells, matrix="layers/counts"), _embed(face, counts))
    adata.raw = counts
    np.testing.assert_array_equal(_embed(face, adata, matrix="raw.X"), _embed(face, counts))
    np.testing.assert_array_equal(_embed(face, adata[3:8], matrix="raw.X"), _embed(face, counts)[3:8])
    with pytest.raises(CorpusError, match="the matrix 'layers/nothing' is missing"):
        face.process_data(adata, matrix="layers/nothing")


def test_presence_and_absence_is_no_matrix_of_counts(face: scGPT, make_adata: MakeAnnData):
    counts = make_adata()
    binary = make_adata(X=(counts.X > 0).astype(np.float32), layers={"raw": counts.X})
    np.testing.assert_array_equal(_embed(face, binary), _embed(face, counts))
    report = face.process_data(binary).report
    assert "layers/raw was read; there are also X (all sampled values are 1)" in report.text()


def test_mouse_cells_are_refused_though_some_genes_have_human_names(face: scGPT, make_adata: MakeAnnData):
    mouse = make_adata(genes=(*(f"Gm{number}" for number in range(30)), make_adata().var_names[0]))
    with pytest.raises(ModelError, match=r"the model knows 1 of the 31 genes.*they look like mouse genes"):
        face.process_data(mouse)


def test_cells_of_another_species_are_empty(face: scGPT, make_adata: MakeAnnData):
    human = make_adata()
    mouse = sparse.csr_matrix(human.X.toarray()[::-1] * (np.arange(30) >= 20)[:, None])
    matrix = sparse.hstack([human.X.toarray() * (np.arange(30) < 20)[:, None], mouse], format="csr")
    names = [*(f"GRCh38_{name}" for name in human.var_names), *(f"mm10___{name}" for name in human.var_names)]
    mixed = anndata.AnnData(matrix, obs=human.obs, var=pd.DataFrame(index=names))
    with pytest.warns(UserWarning, match="10 of 30 cells have no gene that the model knows: c20, c21"):
        data = face.process_data(mixed)
    assert (data.report.species, data.report.num_other_species) == ("human and mouse", human.n_vars)
    np.testing.assert_array_equal(face.get_embeddings(data)[:20], _embed(face, human[:20].copy()))


def test_normalised_values_of_untied_cells_embed_as_their_counts(face: scGPT, make_adata: MakeAnnData):
    counts = np.stack([np.random.default_rng(row).permutation(30) + 1 for row in range(12)]).astype(np.float32)
    raw, logged = make_adata(12, X=counts), make_adata(12, X=np.log1p(counts / counts.sum(1, keepdims=True) * 1e4))
    short = _reconfigured(face, max_length=40)  # nothing is sampled
    np.testing.assert_allclose(_embed(short, logged, use_raw_counts=False), _embed(short, raw), atol=1e-5)


def test_what_is_no_table_of_cells(face: scGPT, make_adata: MakeAnnData, tmp_path: Path):
    with pytest.raises(CorpusError, match="are a list"):
        face.process_data([1, 2])
    with pytest.raises(CytorayError, match=r"nothing\.h5ad"):
        face.process_data(tmp_path / "nothing.h5ad")
    with pytest.raises(ConfigError, match="matrix"):
        face.process_data(make_adata(), matrix="Y")


def test_batch_labels(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata(4)
    assert face.process_data(adata).batch_labels is None
    assert face.process_data(adata, use_batch_labels="kind").batch_labels == ("a", "b", "a", "b")
    with pytest.raises(CorpusError, match=r"no column 'batch'.*kind"):
        face.process_data(adata, use_batch_labels=True)
    adata.obs["batch"] = ["x", "x", "y", "y"]
    assert face.process_data(adata, use_batch_labels=True).take(np.array([2, 0])).batch_labels == ("y", "x")


# --- outputs ---


def test_genes_and_attention_are_those_of_the_tokens(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata(6)
    data = face.process_data(adata)
    long = _reconfigured(face, max_length=40)
    embeddings, attentions, genes = long.get_embeddings(data, output_attentions=True, output_genes=True)
    assert embeddings.shape == (6, 16)
    for row, names in enumerate(genes):
        there = sorted(adata.var_names[adata.X[row].toarray()[0] > 0])
        assert names == ["<cls>", *there]
        assert attentions[row].shape == (4, len(names), len(names))
        np.testing.assert_allclose(attentions[row].sum(-1), 1, atol=1e-5)
    other = long.get_embeddings(data, output_attentions=True, attn_layer=0)[1]
    assert np.abs(other[0] - attentions[0]).max() > 1e-3
    states = _reconfigured(face, max_length=40, emb_mode="gene").get_embeddings(data)
    assert list(states[2].index) == genes[2][1:]
    assert states[2].iloc[0].shape == (16,)
    with pytest.raises(ConfigError, match=r"attn_layer is 2.*0 to 1"):
        face.get_embeddings(data, attn_layer=2)
    with pytest.raises(ConfigError, match="emb_mode 'gene'"):
        _reconfigured(face, emb_mode="gene").embed(adata)


def test_plots(face: scGPT, make_adata: MakeAnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adata = make_adata()
    figure = face.plot_embeddings(adata, color="kind", file=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert face.plot_embeddings(adata, color="CD3D").axes
    embeddings = face.get_embeddings(face.process_data(adata))
    with monkeypatch.context() as context:
        context.setattr(CellPredictor, "predict", None)  # what is there is not computed again
        for suffix, start in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
            face.plot_embeddings(adata, color="kind", file=tmp_path / f"plot{suffix}", embeddings=embeddings)
            assert (tmp_path / f"plot{suffix}").read_bytes().startswith(start)
        with pytest.raises(ConfigError, match=r"unknown kind of picture '\.doc'"):
            face.plot_embeddings(adata, file=tmp_path / "plot.doc")
    with pytest.raises(ModelError, match=r"shape \(7, 16\), for 30 cells"):
        face.plot_embeddings(adata, embeddings=embeddings[:7])
    with pytest.raises(CorpusError, match=r"'colour' is neither.*kind"):
        face.plot_embeddings(adata, color="colour")
    with pytest.raises(ModelError, match="Only 4 cells"):
        face.plot_embeddings(make_adata(4))


def test_a_plot_keeps_what_it_embeds_and_takes_no_other_models_embeddings(
    face: scGPT, make_adata: MakeAnnData, monkeypatch: pytest.MonkeyPatch
):
    adata = make_adata()
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(plotting, "plot_plane", lambda adata, embeddings, **options: drawn.append(embeddings))
    face.plot_embeddings(adata)
    kept = adata.obsm["X_scGPT"].copy()
    np.testing.assert_array_equal(kept, face.get_embeddings(face.process_data(adata)))
    with monkeypatch.context() as context:
        context.setattr(CellPredictor, "predict", None)
        face.plot_embeddings(adata)
    other = _reconfigured(face, emb_mode="cls")
    other.plot_embeddings(adata)
    np.testing.assert_array_equal(adata.obsm["X_scGPT"], other.get_embeddings(other.process_data(adata)))
    face.plot_embeddings(adata[:20])  # a view stays one
    adata.obsm["X_scGPT"] = 2 * kept
    del adata.uns["X_scGPT_model"]
    face.plot_embeddings(adata)  # of unknown origin: drawn as they are
    for seen, wanted in zip(drawn, (kept, kept, other.embed(adata.copy()), kept[:20], 2 * kept), strict=True):
        np.testing.assert_allclose(seen, wanted, atol=1e-6)


# --- weights ---


def test_a_bundle_gives_what_the_predictor_gives(face: scGPT, bundle_folder: Path, make_adata: MakeAnnData):
    data = face.process_data(make_adata())
    bundle = load_bundle(bundle_folder)
    expected = CellPredictor(bundle, pooling="cls").predict(data.cells).embeddings
    got = _reconfigured(face, emb_mode="cls").get_embeddings(data)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert face.bundle.digest == bundle.digest


def test_public_checkpoints_and_saved_bundles_round_trip(face: scGPT, make_adata: MakeAnnData, tmp_path: Path):
    expected = _embed(face, make_adata())
    assert face.save(tmp_path / "again") == face.bundle.digest
    np.testing.assert_array_equal(_embed(scGPT(scGPTConfig(model=tmp_path / "again")), make_adata()), expected)
    bundle = face.bundle
    save_public_checkpoint(bundle.model, bundle.vocabulary, bundle.tokenizer_config, tmp_path / "public")
    public = scGPT(scGPTConfig(model=str(tmp_path / "public"), max_length=20, binning_seed=5))
    np.testing.assert_allclose(_embed(public, make_adata()), expected, atol=1e-6)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"empty is neither a bundle.*holds nothing"):
        scGPT(scGPTConfig(model=tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="neither a bundle"):
        scGPT(scGPTConfig(model=tmp_path / "nowhere"))


def test_the_number_of_heads_of_a_public_checkpoint_must_be_given(face: scGPT, tmp_path: Path):
    bundle, folder = face.bundle, tmp_path / "public"
    save_public_checkpoint(bundle.model, bundle.vocabulary, bundle.tokenizer_config, folder)
    args = json.loads((folder / "args.json").read_text())
    del args["nheads"]
    (folder / "args.json").write_text(json.dumps(args))
    with pytest.raises(ModelError, match=r"does not give nheads.*scGPTConfig: nheads.*1, 2, 4, 8, 16"):
        scGPT(scGPTConfig(model=folder))
    assert scGPT(scGPTConfig(model=folder, nheads=4)).bundle.model.config.num_heads == 4


def test_a_registered_model_needs_a_registry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"no MLflow server is given.*tracking_uri"):
        scGPT(scGPTConfig(model="models:/scgpt@champion"))
    with pytest.raises(ConfigError, match="uri"):
        scGPT(scGPTConfig(model="models:/scgpt@champion", tracking_uri="nonsense"))


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_a_registered_model_is_found(
    face: scGPT, bundle_folder: Path, make_adata: MakeAnnData, mlflow_uri: str, tmp_path: Path
):
    from cytoray.registry.models import register
    from cytoray.tracking import TrackingConfig

    tracking = TrackingConfig(
        uri=mlflow_uri,
        artifact_location=str(tmp_path / "artifacts"),
        journal_folder=str(tmp_path),
    )
    register(bundle_folder, name="tiny", tracking=tracking, alias="champion")
    for name in ("models:/tiny@champion", "models:/tiny/1"):
        config = scGPTConfig(model=name, tracking_uri=tracking.uri, cache_folder=tmp_path / "cache")
        np.testing.assert_array_equal(_embed(scGPT(config), make_adata()), _embed(face, make_adata()))


@pytest.mark.parametrize(("name", "value"), [("nlayers", 3), ("nheads", 2), ("embsize", 32), ("d_hid", 16)])
def test_arguments_that_contradict_the_weights(face: scGPT, bundle_folder: Path, name: str, value: int):
    with pytest.raises(ModelError, match=rf"{name}={value} was asked for, but the weights .* have {name}="):
        scGPT(scGPTConfig(model=bundle_folder, **{name: value}))
    with pytest.raises(ModelError, match=name):
        _reconfigured(face, **{name: value})


def test_the_binning_seed_is_the_seed_of_ties(face: scGPT, make_adata: MakeAnnData):
    adata = make_adata()
    assert face.bundle.tokenizer_config.seed == 5  # as the weights have it
    one, two = (_reconfigured(face, binning_seed=seed, inference="drawn") for seed in (1, 2))
    assert np.abs(_embed(one, adata) - _embed(two, adata)).max() > 1e-4
    again = _reconfigured(face, binning_seed=1, inference="drawn")
    np.testing.assert_array_equal(_embed(one, adata), _embed(again, adata))
    np.testing.assert_array_equal(_embed(face, adata), _embed(_reconfigured(face, binning_seed=1), adata))
    changed = _reconfigured(face, mask_value=-7, pad_value=-8).bundle
    assert (changed.tokenizer_config.mask_value, changed.tokenizer_config.pad_value) == (-7, -8)
    assert changed.digest is None
    assert face.bundle.tokenizer_config.mask_value == -1


def test_random_weights_are_reproducible_and_leave_the_generator_alone():
    import torch

    state = torch.get_rng_state()
    faces = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="RANDOM"):
            faces.append(scGPT(scGPTConfig(nlayers=1, nheads=1, embsize=4, d_hid=4, seed=3)))
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (face.bundle.model.state_dict() for face in faces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert faces[0].bundle.tokenizer_config.seed == 123


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"emb_mode": "mean"}, "emb_mode.*'cell', 'cls' or 'gene', got 'mean'"),
        ({"batch_size": 0}, "batch_size.*greater than or equal to 1, got 0"),
        ({"embsize": 10, "nheads": 3}, "embsize 10 is not a multiple of nheads 3"),
        ({"nlayer": 3}, "unknown argument nlayer .did you mean nlayers"),
        ({"device": "tpu"}, "device.*got 'tpu'.*cpu, cuda"),
        ({"empty_cells": "drop"}, "empty_cells.*'nan' or 'error'"),
        ({"dropout": 1.5, "pad_token": "x"}, "dropout.*; pad_token"),
    ],
)
def test_wrong_arguments_are_told_by_name(arguments: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        scGPTConfig(**arguments)


def test_the_defaults_of_the_model_card():
    config = scGPTConfig()
    shape = (config.nlayers, config.nheads, config.embsize, config.d_hid, config.n_layers_cls)
    assert shape == (12, 8, 512, 512, 3)
    assert (config.batch_size, config.emb_mode, config.dropout, config.binning_seed) == (24, "cell", 0.2, 123)
    assert (config.mask_value, config.pad_value, config.pad_token) == (-1, -2, "<pad>")
    assert (config.world_size, config.accelerator, config.device) == (8, False, "cpu")


def test_a_device_that_is_not_there(bundle_folder: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"no cuda:1 here.*cpu"):
        scGPT(scGPTConfig(model=bundle_folder, device="cuda:1"))


def test_data_sets_of_another_vocabulary_are_refused(face: scGPT, make_adata: MakeAnnData):
    with pytest.warns(UserWarning, match="RANDOM"):
        other = scGPT(scGPTConfig(nlayers=1, nheads=1, embsize=4, d_hid=4))
    data: scGPTDataset = face.process_data(make_adata())
    with pytest.raises(ModelError, match="another vocabulary"):
        other.get_embeddings(data)


# --- what it loads ---


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import cytoray", {"torch", "anndata", "ray", "pandas", "pydantic"}),
        ("import cytoray.api", {"ray", "mlflow", "deepspeed", "scanpy"}),
        ("from cytoray import scGPT, scGPTConfig, scGPTFineTuningModel", {"ray", "mlflow", "deepspeed", "scanpy"}),
    ],
)
def test_what_is_imported(code: str, absent: set[str]):
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*({absent} & sys.modules.keys()))"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


def test_objects_print_in_a_line(face: scGPT, make_adata: MakeAnnData):
    data = face.process_data(make_adata(), use_batch_labels="kind")
    assert repr(data) == "scGPTDataset(30 cells, 30 of 30 genes known, 2 batch labels)"
    assert repr(face).startswith("scGPT(2 layers of width 16, 33 tokens, from ")
    for thing in (data.report, data.cells, face.bundle):
        assert len(repr(thing)) < 500


def test_the_configuration_is_the_one_in_force(face: scGPT, bundle_folder: Path):
    config = face.config
    shape = (config.nlayers, config.nheads, config.embsize, config.d_hid, config.dropout, config.max_length)
    assert shape == (2, 4, 16, 24, 0.0, 20)
    assert (config.binning_seed, config.given) == (5, {"model"})
    tuned = scGPTFineTuningModel(
        scGPTConfig(model=bundle_folder, n_layers_cls=2, dropout=0.3, max_length=10), output_size=2
    )
    assert (tuned.config.n_layers_cls, tuned.config.dropout, tuned.config.max_length) == (2, 0.3, 10)
    assert scGPT.from_bundle(face.bundle, configurer=face.config).config == config


def test_the_package_has_no_other_name():
    import cytoray

    assert {"scGPT", "scGPTConfig", "scGPTFineTuningModel"} <= set(dir(cytoray))

    with pytest.raises(AttributeError, match="scGTP"):
        _ = cytoray.scGTP
