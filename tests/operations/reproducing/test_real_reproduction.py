"""Real training, done twice from the lineage alone, gives the same bits; the quickstart's model too (slow)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_corpus, pretrain_config

from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.operations.reproducing.lineage import Places, trace_model
from cytoray.operations.reproducing.plan import plan_reproduction
from cytoray.operations.reproducing.rebuild import open_target, rebuild
from cytoray.runs import find_bundle
from cytoray.stages.find import find_stage

CYTORAY = Path(sys.executable).with_name("cytoray")


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster", "mlflow_uri")
def test_a_trained_run_comes_out_with_the_same_bits(tmp_path: Path):
    synthesise(tmp_path / "raw", SynthConfig(num_cells=96, num_genes=300, mean_genes=60, num_files=2))
    store = str(tmp_path / "store")
    make_corpus(store, [{"uri": f"{tmp_path}/raw/"}])
    config = pretrain_config(store, tmp_path, tokenizer={"max_length": 41}, num_steps=4)
    find_stage("pretrain")(config)
    plan = plan_reproduction(trace_model("run:base", places=Places(store)))
    assert plan.warnings == ()
    result = rebuild(plan, open_target(plan, tmp_path / "again"))
    assert result.equal, result
    first, second = (
        load_file(f"{find_bundle(place, 'base').uri}/model.safetensors") for place in (store, result.store)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert find_bundle(store, "base").uri != find_bundle(result.store, "base").uri


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_model_of_the_quickstart_is_reproduced(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def run(*words: str) -> str:
        done = subprocess.run(
            [CYTORAY, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run("quickstart", "--folder", "work", "--steps", "20", "--port", port)
    uri = ["--uri", f"sqlite:///{tmp_path}/work/mlflow.db"]
    plan = json.loads(run("reproduce", "models:/cytoray-quickstart@champion", *uri, "--dry-run", "--json"))
    assert [step["step"] for step in plan["steps"]] == ["ingest", "pretrain", "finetune"]
    assert plan["warnings"] == []
    found = json.loads(run("reproduce", "models:/cytoray-quickstart@champion", *uri, "--out", "again", "--json"))
    assert found["equal"]
    assert [each["equal"] for each in found["comparisons"]] == [True] * 4
    one, two = (
        load_file(next(iter((tmp_path / folder).rglob("runs/finetune-*/bundle-*/model.safetensors"))))
        for folder in ("work", "again")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
