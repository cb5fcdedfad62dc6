"""Screens: how they are read, assessed, fitted and used on control cells; what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from planted_screen import GENES, NEW, TARGETS, screen, write_sets
from scipy import sparse
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError, CorpusError, DigestError, NotFoundError, RequestError
from cytoray.evaluation.perturbation.ceilings import Half
from cytoray.tasks.perturbation import judging, knowledge
from cytoray.tasks.perturbation.judging import Answers, Truth, judge
from cytoray.tasks.perturbation.names import name_perturbations
from cytoray.tasks.perturbation.reading import dominant, read_screen
from cytoray.tasks.perturbation.screen import Columns

Change = Callable[[anndata.AnnData], object]
COLUMNS = Columns("perturbation", "control")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Only the planted gene sets, and fewer draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "SHIPPED", ())
        patch.setattr(judging, "NUM_DRAWS", 50)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A screen, gene sets, and a model that was fitted on them."""
    found = tmp_path_factory.mktemp("screen")
    screen(doubles=True).write_h5ad(found / "screen.h5ad")
    write_sets(found)
    run("perturbations", "fit", "--data", found / "screen.h5ad", "--batch-key", "batch", "--gene-sets",
        found / "pathways.gmt", "--out", found / "model")  # fmt: skip
    return found


def run(*words: object) -> dict[str, Any]:
    """Run a command and return its JSON."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def read(adata: anndata.AnnData, columns: Columns = COLUMNS) -> Any:
    return read_screen(adata, columns)


def name(values: list[str | None], control: str = "control") -> Any:
    return name_perturbations(values, control=control, measured=GENES, where="cells")


def test_names_in_a_column_become_genes_conditions_and_cells_left_out() -> None:
    values = ["control", "STAT1", "STAT1+ctrl", "ctrl+STAT1", "IRF1_STAT1", "STAT1,IRF1", "dexamethasone", None,
              "unassigned", "multiple", "NaN", "GENE1"]  # fmt: skip
    found = name(values)
    assert found.names == ("GENE1", "IRF1+STAT1", "STAT1", "dexamethasone")
    codes = [found.names[code] if code is not None and code >= 0 else code for code in found.codes]
    assert codes[:7] == [-1, "STAT1", "STAT1", "STAT1", "IRF1+STAT1", "IRF1+STAT1", "dexamethasone"]
    assert codes[7:] == [None, None, None, None, "GENE1"]
    assert found.genes == {"GENE1", "IRF1", "STAT1"}
    assert found.left_out == {"missing": 1, "unassigned": 1, "multiple": 1, "NaN": 1}
    assert "4 cells without a known perturbation were left out" in found.warnings[0]


@pytest.mark.parametrize("form", ["{}g{}", "{}-{}", "{}_{}", "{}_sg{}", "sg{}_{}", "{}_gRNA{}"])
def test_guides_are_mapped_to_their_targets(form: str) -> None:
    guides = [form.format(gene, number) for gene in ("STAT1", "IRF1", "HLA-A") for number in (1, 2)]
    found = name(["control", *guides])
    assert found.names == ("HLA-A", "IRF1", "STAT1")
    assert "has guides: 6 were mapped to 3 targets" in found.warnings[0]
    assert name(["control", "NKX2-1", "HLA-A", "STAT1"]).names == ("HLA-A", "NKX2-1", "STAT1"), "genes as they are"


def test_genes_with_a_suffix_are_listed() -> None:
    values = ["control", "STAT1_TSS", "chr3.52_top_two", "chr9.28_top_two", "chr8.1_top_two", "IRF1-KO+SMO", "STAT1"]
    found = name(values)
    assert found.names == ("IRF1+SMO", "STAT1", "chr3.52_top_two", "chr8.1_top_two", "chr9.28_top_two")
    assert found.codes[1] == found.codes[6]
    assert "2 names are not genes and were taken as the gene before their suffix" in found.warnings[0]
    assert "(IRF1-KO → IRF1, STAT1_TSS → STAT1)" in found.warnings[0]


def test_guides_of_controls_are_controls() -> None:
    found = name(["NTg1", "NTg2", "STAT1g1", "STAT1g2", "IRF1g1"], control="NT")
    assert found.names == ("IRF1", "STAT1")
    assert found.codes[:2] == (-1, -1)


def test_a_table_of_guides_names_the_dominant_one() -> None:
    counts = sparse.csr_matrix([[9, 1, 0], [4, 0, 0], [5, 5, 0], [0, 0, 30], [0, 0, 0]])
    assert dominant(counts, ["a", "b", "c"]) == ["a", None, None, "c", None]
    adata = screen(10)
    kinds = np.array(adata.obs["perturbation"].astype(str))
    guides = sorted({f"{'NT' if kind == 'control' else kind}g1" for kind in kinds})
    table = np.zeros((adata.n_obs, len(guides)))
    for row, kind in enumerate(kinds):
        table[row, guides.index(f"{'NT' if kind == 'control' else kind}g1")] = 20
    adata.obsm["guides"] = pd.DataFrame(table, index=adata.obs_names, columns=guides)
    found = read(adata, Columns("guides", "NT"))
    assert found.names == tuple(sorted(TARGETS))
    np.testing.assert_array_equal(found.cells.codes, read(adata).cells.codes)


def test_a_file_and_an_anndata_are_the_same_screen(folder: Path) -> None:
    adata = anndata.read_h5ad(folder / "screen.h5ad")
    columns = Columns("perturbation", "control", "batch")
    one, two = read(adata, columns), read_screen(str(folder / "screen.h5ad"), columns)
    assert one.digest == two.digest
    assert one.names == two.names
    assert "6 of 12 targets are not among the measured genes" in " ".join(one.warnings)


def take_controls(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[adata.obs["perturbation"] != "control"].copy()


def set_guides(adata: anndata.AnnData) -> anndata.AnnData:
    names = sorted(set(adata.obs["perturbation"]) - {"control"})
    letters = {
        each: "".join("ACGT"[(7 * row + k * (row + 3)) % 4] for k in range(20)) for row, each in enumerate(names)
    }
    values = [letters.get(value, value) for value in adata.obs["perturbation"]]
    adata.obs["perturbation"] = pd.Categorical(values)
    return adata


def one_target(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[adata.obs["perturbation"].isin(["control", "IFNGR1"])].copy()


def one_target_without_types(adata: anndata.AnnData) -> anndata.AnnData:
    few = one_target(adata)
    del few.obs["cell_type"]
    return few


def only_controls(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[adata.obs["perturbation"] == "control"].copy()


def negative(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = sparse.csr_matrix(adata.X.toarray() - 1)
    return adata


def empty(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    return adata


BAD: list[tuple[Change, dict[str, Any], str]] = [
    (lambda adata: adata, {"control": "controls"}, "no cell has the control value 'controls'.*'control'"),
    (lambda adata: adata, {"perturbation_key": "perturb"}, "no column 'perturb'.*perturbation"),
    (lambda adata: adata, {"batch_key": "bach"}, "no column 'bach'.*--batch-key.*batch"),
    (take_controls, {}, "no cell has the control value 'control'"),
    (only_controls, {}, "no cell has a perturbation other than 'control'"),
    (one_target_without_types, {}, r"1 perturbed target \(IFNGR1\).*leave-cell-type-out"),
    (set_guides, {}, "has sequences of guides"),
    (negative, {}, "is -1"),
    (empty, {}, "no cell has a count of RNA"),
    (lambda adata: adata[:, :4].copy(), {}, "4 genes; at least 5"),
    (lambda adata: adata[:100].copy(), {}, "no cell has a perturbation other than"),
]


@pytest.mark.parametrize(("change", "options", "problem"), BAD)
def test_unusable_screens_are_refused(change: Change, options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    change(screen(8 if "4 genes" in problem else 40)).write_h5ad(tmp_path / "s.h5ad")  # type: ignore[attr-defined]
    with pytest.raises(CorpusError, match=f"(?s){problem}") as caught:
        cytoray.assess("perturbation", data=str(tmp_path / "s.h5ad"), out=str(tmp_path / "out"), **options)
    assert caught.value.remedy
    assert not list((tmp_path / "out").iterdir()), "nothing half-written"


def test_a_file_that_has_no_gene_sets_is_refused(folder: Path, tmp_path: Path) -> None:
    for name_of, data in {"no.gmt": b"just a line\n", "cells.gmt": b"\x89HDF\r\n\x1a\n\xff\xfe"}.items():
        (tmp_path / name_of).write_bytes(data)
        with pytest.raises(ConfigError, match=name_of):
            cytoray.assess(
                "perturbation", data=str(folder / "screen.h5ad"), gene_sets=(str(tmp_path / name_of),),
                out=str(tmp_path / "out"),
            )  # fmt: skip


def test_doubtful_screens_get_a_warning(tmp_path: Path) -> None:
    adata = screen(10)
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4))
    warnings = " ".join(read(adata[:, :20].copy()).warnings)
    assert "20 genes are few" in warnings
    assert "taken as log-normalised" in warnings
    adata.obs["batch"] = np.where(adata.obs["perturbation"] == "control", "c", "p")
    assert "batches without control cells (p)" in " ".join(
        read(adata, Columns("perturbation", "control", "batch")).warnings
    )
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace("SMO", "vitamin D")
    assert "not genes, taken as conditions of their own: vitamin D" in " ".join(read(adata).warnings)


def test_targets_left_out(folder: Path, tmp_path: Path) -> None:
    words = ["assess", "perturbation", "--data", folder / "screen.h5ad", "--batch-key", "batch", "--gene-sets",
             folder / "pathways.gmt"]  # fmt: skip
    found = run(*words, "--out", tmp_path / "out")
    rows = found["metrics"]
    assert next(iter(rows)) == "wmse"
    assert rows["wmse"]["product"] < 0.4 * rows["wmse"]["baseline"] < rows["wmse"]["floor"]
    assert rows["wmse"]["verdict"] == "win"
    assert rows["pearson_delta"]["product"] > 0.8 > rows["pearson_delta"]["baseline"]
    assert rows["pds"]["product"] > rows["pds"]["baseline"]
    assert rows["r2w"]["baseline"] == 0
    assert rows["diversity_ratio"]["product"] > 0.5
    assert {"pearson_delta_pert", "changed_overlap", "mae", "effect_size_correlation", "spearman_lfc"} <= rows.keys()
    units = {unit["name"]: unit for unit in found["details"]["units"]}
    assert "IFNGR2" in units["IFNGR1"]["reason"] or "JAK1" in units["IFNGR1"]["reason"]
    assert "interferon" in units["IFNGR1"]["reason"]
    assert {method["method"] for method in found["details"]["methods"]} == {"no change", "mean", "linear", "product"}
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("WMSE (lower is better)", "Observed and predicted effects", "Confidence", "Strata"):
        assert text in page, text
    again = run(*words, "--out", tmp_path / "again")
    for report in (found, again):
        report.pop("seconds")
    assert found == again


def test_predictions_that_differ_in_the_perturbed_genes_alone_are_all_alike() -> None:
    deltas = np.random.default_rng(0).normal(size=(4, 30))
    own = np.eye(4, 30, dtype=bool)
    half = Half(deltas, np.full(deltas.shape, 1 / 30), deltas)
    truth = Truth(tuple("abcd"), deltas, ~own, np.ones(deltas.shape), np.full(4, 50.0), np.ones(4), (half, half),
                  ("",) * 4)  # fmt: skip
    alike = np.where(own, -9.0, deltas.mean(axis=0))
    rows, _, warnings = judge(truth, Answers(alike, alike, {}, np.ones(4), {}), seed=0)
    assert rows["diversity_ratio"].product == pytest.approx(0, abs=1e-6)
    assert any("predictions differ much less" in text for text in warnings)


def test_conditions_that_are_no_genes_are_predicted_as_the_mean(tmp_path: Path) -> None:
    adata = screen(10)
    adata.obs["perturbation"] = [
        value if value == "control" else f"drug {value}" for value in adata.obs["perturbation"]
    ]
    adata.write_h5ad(tmp_path / "s.h5ad")
    found = run("assess", "perturbation", "--data", tmp_path / "s.h5ad", "--out", tmp_path / "out")
    assert found["chosen"] == {"mean of the others": 12}
    assert found["metrics"]["wmse"]["product"] <= 1.02 * found["metrics"]["wmse"]["baseline"]
    model = cytoray.PerturbationModel.fit(adata)
    assert model.predict("drug SMO").confidence[0] > 0, "known"
    with pytest.raises(RequestError, match="drug"):
        model.predict("drug of nobody")


def test_cell_types_left_out(tmp_path: Path) -> None:
    one_target(screen(80)).write_h5ad(tmp_path / "s.h5ad")
    found = run("assess", "perturbation", "--data", tmp_path / "s.h5ad", "--protocol", "leave-cell-type-out",
                "--cell-type-key", "cell_type", "--out", tmp_path / "out")  # fmt: skip
    assert {unit["name"] for unit in found["details"]["units"]} == {"B", "Mono", "NK", "T"}
    assert found["metrics"]["pearson_delta"]["product"] > 0.6
    again = run("assess", "perturbation", "--data", tmp_path / "s.h5ad", "--out", tmp_path / "again")
    assert any("(IFNGR1): cell types of 'cell_type' are left out instead" in text for text in again["warnings"])
    assert again["metrics"] == found["metrics"]
    with pytest.raises(ConfigError, match="cell_type_key"):
        cytoray.assess("perturbation", data="s.h5ad", protocol="leave-cell-type-out", out=str(tmp_path / "o"))


def test_a_gene_without_cells_is_predicted_with_its_reason(folder: Path, tmp_path: Path) -> None:
    data = folder / "screen.h5ad"
    found = run(
        "perturb", folder / "model", "--genes", f"{NEW},IFNGR2+SMO", "--data", data, "--out", tmp_path / "o.h5ad"
    )
    new, pair = found["perturbations"]
    assert (new["perturbation"], pair["perturbation"]) == (NEW, "IFNGR2+SMO")
    near = new["reason"]["parts"][0]["neighbours"]
    assert {each["target"] for each in near} <= {"IFNGR1", "IFNGR2", "JAK1", "STAT1"}
    assert "interferon" in near[0]["shared"][0]
    assert 0.5 < new["confidence"] <= 1
    effects = cytoray.PerturbationModel.load(folder / "model").predict("IFNGR1,SMO")
    delta = np.array([new["delta"][gene] for gene in GENES])
    others = [column for column, gene in enumerate(GENES) if gene not in TARGETS]
    assert np.corrcoef(delta[others], effects.deltas[0, others])[0, 1] > 0.9
    assert abs(np.corrcoef(delta[others], effects.deltas[1, others])[0, 1]) < 0.7
    assert new["top_genes"][0]["low"] < new["top_genes"][0]["delta"] < new["top_genes"][0]["high"]
    written = anndata.read_h5ad(tmp_path / "o.h5ad")
    assert written.obs["perturbation"].value_counts().to_dict() == {NEW: 200, "IFNGR2+SMO": 200}
    np.testing.assert_allclose(written.varm["delta"][:, 0], delta, atol=1e-5)
    controls = anndata.read_h5ad(data)
    controls = controls[controls.obs["perturbation"] == "control"]
    normal = np.log1p(controls.X.toarray() / controls.X.sum(axis=1) * 1e4).mean(axis=0)
    change = written[written.obs["perturbation"] == NEW].X.toarray().mean(axis=0) - np.asarray(normal).ravel()
    assert np.corrcoef(change, delta)[0, 1] > 0.9
    assert json.loads((tmp_path / "o.json").read_text())["perturbations"][0] == new
    with pytest.raises(ConflictError, match="already exists"):
        run("perturb", folder / "model", "--genes", NEW, "--data", data, "--out", tmp_path / "o.h5ad")


def test_a_combination_is_more_like_its_parts_than_anything_else(folder: Path) -> None:
    model = cytoray.PerturbationModel.load(folder / "model")
    pair, first, second = model.predict(["IFNGR2+GLI1", "IFNGR2", "GLI1"]).deltas
    np.testing.assert_allclose(pair, first + second, atol=1e-6)


def test_a_model_is_kept_as_arrays(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "screen.h5ad")
    model = cytoray.PerturbationModel.fit(adata, batch_key="batch", gene_sets=[str(folder / "pathways.gmt")])
    model.save(tmp_path / "m")
    loaded = cytoray.PerturbationModel.load(tmp_path / "m")
    one, two = model.predict([NEW, "ATG5+SMO"]), loaded.predict([NEW, "ATG5+SMO"])
    np.testing.assert_allclose(one.deltas, two.deltas, atol=1e-6)
    assert one.reasons == two.reasons
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"arrays.safetensors", "model.json"}
    assert "mean of the others" in loaded.facts["why"]
    with pytest.raises(ConflictError):
        model.save(tmp_path / "m")
    data = bytearray((tmp_path / "m" / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "arrays.safetensors").write_bytes(data)
    with pytest.raises(DigestError, match="changed or damaged"):
        cytoray.PerturbationModel.load(tmp_path / "m")
    with pytest.raises(NotFoundError, match="not a perturbation model"):
        cytoray.PerturbationModel.load(tmp_path)


def test_unknown_names_and_other_genes_are_refused(folder: Path) -> None:
    model = cytoray.PerturbationModel.load(folder / "model")
    with pytest.raises(RequestError, match=r"'IFNGRR1': not a gene.*IFNGR1") as caught:
        model.predict("IFNGRR1")
    assert caught.value.details["unknown"] == ["IFNGRR1"]
    assert "IFNGR1_KO → IFNGR1" in model.predict("IFNGR1_KO").warnings[0]
    alone = model.predict("TP53")
    assert "TP53: no view knows it" in alone.warnings[0]
    assert alone.confidence[0] == 0
    controls = screen(5)
    controls.var_names = [f"other{row}" for row in range(controls.n_vars)]
    with pytest.raises(CorpusError, match="0 of the model's 120 genes"):
        model.predict_cells(NEW, controls)
    with pytest.raises(CorpusError, match="one perturbation"):
        cytoray.PerturbationModel.fit(one_target(screen(20)))
