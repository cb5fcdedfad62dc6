"""Gene networks of planted cells: inferred, continued, looked at, compared; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import networkx
import numpy as np
import pandas as pd
import pytest
from planted_network import EDGES, FACTORS, GENES, build, write_truth
from typer.testing import CliRunner

import cytoray
from cytoray import failpoints
from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError, CorpusError, DigestError, NotFoundError
from cytoray.failpoints import FailpointError
from cytoray.stages.job import run_stage
from cytoray.tasks.networks.differences import compare_groups
from cytoray.tasks.networks.network import GeneNetwork, load_network
from cytoray.tasks.networks.reading import read_known_edges

SMALL: dict[str, Any] = {"num_trees": 40, "block_size": 25, "pool_size": 3, "run_on": "here"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    build().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def network(data: Path) -> GeneNetwork:
    return cytoray.infer_networks(str(data), out=str(data.parent / "network"), **SMALL)


def infer(data: Path, out: Path, **settings: Any) -> GeneNetwork:
    return cytoray.infer_networks(str(data), out=str(out), **{**SMALL, **settings})


def test_the_planted_edges_are_the_strongest(network: GeneNetwork, data: Path) -> None:
    top = network.edges.head(40)
    assert np.mean([target in EDGES[tf] for tf, target in zip(top["tf"], top["target"], strict=True)]) > 0.9
    repressed = {targets[-1] for targets in EDGES.values()}
    for row in top.itertuples():
        assert row.target not in EDGES[row.tf] or row.sign == (-1 if row.target in repressed else 1)
    assert set(network.edges) >= {"correlation", "pooled_correlation", "trees"}
    assert len(network.edges) == len(FACTORS) * (len(GENES) - 1), "all pairs but a factor with itself"
    assert any(set(EDGES["IRF1"][:8]) <= set(each["genes"]) for each in network.programs)
    activity = load_network(str(data.parent / "network"), with_activity=True).activity
    assert activity is not None
    counts = anndata.read_h5ad(data).to_df()
    own = counts[list(EDGES["SPI1"][:8])].sum(axis=1) / counts.sum(axis=1)
    assert np.corrcoef(activity["SPI1"], own)[0, 1] > 0.7


def test_the_folder_is_complete_and_readable_elsewhere(network: GeneNetwork, data: Path) -> None:
    folder = data.parent / "network"
    assert sorted(path.name for path in folder.iterdir()) == [
        "activity.parquet", "edges.parquet", "network.graphml", "network.json", "report.html",
    ]  # fmt: skip
    graph = networkx.read_graphml(folder / "network.graphml")
    assert graph.nodes["IRF1"]["kind"] == "factor"
    assert graph.number_of_edges() == len(network.edges)
    again = load_network(str(folder))
    pd.testing.assert_frame_equal(again.edges, network.edges)
    page = (folder / "report.html").read_text()
    assert "Strongest edges: all" in page
    assert "Programs" in page
    assert "median of all factors" in page
    assert all(0 < value <= 1 for kind in again.reliability().values() for value in kind)
    assert set(again.reliability()) == {"correlation", "pooled_correlation", "trees"}


def test_a_rerun_finds_the_network_and_other_settings_do_not_replace_it(data: Path, network: GeneNetwork) -> None:
    before = (data.parent / "network" / "network.json").stat().st_mtime_ns
    again = infer(data, data.parent / "network")
    pd.testing.assert_frame_equal(again.edges, network.edges)
    assert (data.parent / "network" / "network.json").stat().st_mtime_ns == before
    with pytest.raises(ConflictError, match="other data or settings"):
        infer(data, data.parent / "network", seed=1)


def test_an_interrupted_inference_continues_with_the_blocks_that_are_there(
    data: Path, network: GeneNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failpoints._hits.clear()
    with monkeypatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, "assess.after_piece=raise@2")
        with pytest.raises(FailpointError):
            infer(data, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".pieces"], "nothing of a network is visible"
    failpoints._hits.clear()
    monkeypatch.setenv(failpoints.VARIABLE, "no.such_point=raise")
    found = infer(data, tmp_path / "out")
    assert failpoints._hits["assess.before_piece"] == 1, "of 3 blocks, 2 were there"
    pd.testing.assert_frame_equal(found.edges, network.edges)
    with pytest.raises(NotFoundError, match="not a network"):
        load_network(str(tmp_path / "elsewhere"))


def test_groups_have_their_own_edges_and_are_compared(tmp_path: Path) -> None:
    build(400, broken="PAX5").write_h5ad(tmp_path / "cells.h5ad")
    found = infer(tmp_path / "cells.h5ad", tmp_path / "out", groups="cell_type", gene_sets="none")
    assert found.groups == ("A", "B")
    table = compare_groups(found, "A", "B")
    different = table[table["q_value"] < 0.05]
    assert len(different) >= 9
    first = different.head(8)
    assert set(first["tf"]) == {"PAX5"}
    assert set(first["target"]) <= set(EDGES["PAX5"])
    out = tmp_path / "difference.parquet"
    command = ["networks", "compare", str(tmp_path / "out"), "--first", "A", "--second", "B", "--out", str(out)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    with pytest.raises(ConfigError, match="compared with itself"):
        compare_groups(found, "A", "A")


def test_weights_are_learned_from_a_table(data: Path, tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.tsv")
    found = infer(data, tmp_path / "out", train_on=str(truth))
    weights = found.about["evidence"]["all"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights != dict.fromkeys(weights, 1 / len(weights))


def test_a_gene_is_shown(data: Path, network: GeneNetwork, tmp_path: Path) -> None:
    folder, picture = str(data.parent / "network"), tmp_path / "irf1.png"
    command = ["networks", "show", folder, "--gene", "IRF1", "--num", "6", "--out", str(picture), "--json"]
    answer = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    targets = [edge["target"] for edge in answer["edges"] if edge["tf"] == "IRF1"]
    assert set(targets) <= set(EDGES["IRF1"])
    assert picture.stat().st_size > 1_000
    with pytest.raises(ConfigError, match="Did you mean IRF1"):
        network.neighbourhood("IRF11")


def test_the_command_infers(data: Path, network: GeneNetwork) -> None:
    options = ["--num-trees", "40", "--block-size", "25", "--pool-size", "3", "--run-on", "here", "--json"]
    command = ["networks", "infer", "--data", str(data), "--out", str(data.parent / "network"), *options]
    answer = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    assert answer["num_edges"] == len(network.edges)
    assert answer["groups"] == {"all": 300}


def test_changed_files_are_refused(data: Path, network: GeneNetwork, tmp_path: Path) -> None:
    for path in (data.parent / "network").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "edges.parquet").write_bytes(b"other")
    with pytest.raises(DigestError, match=r"edges\.parquet"):
        load_network(str(tmp_path))


def change(data: Path, path: Path, edit: Any) -> Path:
    adata = edit(anndata.read_h5ad(data))
    adata.write_h5ad(path)
    return path


def test_bad_input_is_named(data: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (lambda a: a[:, list(GENES[6:])].copy(), {}, "None of the .* factors"),
        (lambda a: a[:10].copy(), {}, "10 cells with counts"),
        (lambda a: a, {"groups": "no_such"}, "no_such"),
        (lambda a: a[:30].copy(), {"groups": "cell_type"}, "no group of 'cell_type' has 20 cells"),
    ]
    for number, (edit, settings, problem) in enumerate(cases):
        path = change(data, tmp_path / f"{number}.h5ad", edit)
        with pytest.raises(CorpusError, match=problem):
            infer(path, tmp_path / f"out{number}", **settings)
    (tmp_path / "tfs.csv").write_text("a,b\nc,d\n")
    with pytest.raises(ConfigError, match="not a list of transcription factors"):
        infer(data, tmp_path / "out", tfs=str(tmp_path / "tfs.csv"))
    with pytest.raises(ConfigError, match="does not exist"):
        infer(data, tmp_path / "out", tfs=str(tmp_path / "missing.txt"))
    (tmp_path / "tfs.txt").write_text("IRF1\nTARGET3\n# a remark\n")
    found = infer(data, tmp_path / "listed", tfs=str(tmp_path / "tfs.txt"))
    assert found.tfs == ("IRF1", "TARGET3")


def test_doubtful_input_gets_a_warning(data: Path, tmp_path: Path) -> None:
    def twenty_genes_logged(adata: anndata.AnnData) -> anndata.AnnData:
        adata = adata[:, list(GENES[:20])].copy()
        adata.X = np.log1p(adata.X * 0.37)
        adata.obs["cell_type"] = ["rare" if row < 5 else "A" for row in range(adata.n_obs)]
        return adata

    path = change(data, tmp_path / "few.h5ad", twenty_genes_logged)
    text = " ".join(infer(path, tmp_path / "out", groups="cell_type").about["warnings"])
    for part in ("values are not counts", "20 targets are few", "rare (5)"):
        assert part in text


def test_tables_of_known_edges(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.tsv")
    edges = read_known_edges(str(truth))
    assert len(edges) == 54
    assert {edge.sign for edge in edges} == {1, -1}
    assert len(read_known_edges(str(truth), confidence=())) == 55
    (tmp_path / "plain.csv").write_text("source,target,sign\nIRF1,STAT1,activation\nSPI1,CD19,repression\n")
    assert [(edge.tf, edge.sign) for edge in read_known_edges(str(tmp_path / "plain.csv"))] == [
        ("IRF1", 1),
        ("SPI1", -1),
    ]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a table of edges"):
        read_known_edges(str(tmp_path / "other.csv"))
    with pytest.raises(ConfigError, match=r"no edge of confidence Z; it has A, B, E"):
        read_known_edges(str(truth), confidence=("Z",))


@pytest.mark.ray
def test_blocks_by_ray_are_the_same(data: Path, network: GeneNetwork, ray_cluster: None, tmp_path: Path) -> None:
    found = infer(data, tmp_path / "out", run_on="ray")
    pd.testing.assert_frame_equal(found.edges, network.edges)


def test_a_job_infers(data: Path, network: GeneNetwork) -> None:
    options = [f"{name}={value}" for name, value in {**SMALL, "out": data.parent / "network"}.items()]
    config = Path(__file__).parents[2] / "configs" / "networks" / "infer.yaml"
    found = run_stage("infer-networks", config, overrides=[f"data={data}", *options], num_cpus=1)
    assert found["num_edges"] == len(network.edges)
