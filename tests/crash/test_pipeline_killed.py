"""A pipeline with training whose processes are all killed once at each stage, at a moment drawn by a seed.

It ends with the corpus, weights and registered bundle of a pipeline that nothing disturbed: both run in folders of the
same name, one after the other, since locations are part of a bundle's lineage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from processes import end_all, started

from cytoray import storage
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.errors import RegistryError
from cytoray.failpoints import ONCE_VARIABLE, VARIABLE
from cytoray.tracking import prepare_environment
from cytoray.tracking.server import connect

pytestmark = [pytest.mark.crash, pytest.mark.ray, pytest.mark.timeout(3000)]
SEED = int(os.environ.get("CRASH_SEED", "1"))
COMMAND = [sys.executable, "-c", "from cytoray.cli import main; main()", "pipeline", "run", "--json"]
CHECKPOINT = "a checkpoint"
# Where each stage may be killed: in what it does itself, or when the pipeline records it.
MOMENTS = {
    "cells": ("ingest.after_spill", "ingest.before_commit", "ingest.after_commit"),
    "pretrain": (CHECKPOINT, "train.before_done", "train.after_done"),
    "types": (CHECKPOINT, "train.before_done", "train.after_done"),
    "scores": ("pipeline.before_report", "pipeline.after_report"),
    "champion": ("register.after_upload", "register.after_version", "register.before_alias", "register.after_alias"),
}
EVERYWHERE = ("pipeline.before_record", "pipeline.after_record")
SHAPE = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0}
Result = dict[str, Any]


def stages_of(sources: str, held_out: Path, report: Path) -> list[dict[str, Any]]:
    """Tiny stages from files of cells to a champion."""
    train = {"num_steps": 6, "cells_per_step": 16, "checkpoint_every": 2}
    shared = {"corpus": "cells", "tokenizer": {"max_length": 41}, "train": train, "workers": {"num_workers": 1}}
    evaluate = {"data": {"uri": str(held_out)}, "label_key": "cell_type", "baseline_corpus": "cells"}
    gate = {"scores": "of the pipeline", "metric": "macro_f1", "at_least": 0.0}
    return [
        {"name": "cells", "config": {"kind": "ingest", "corpus": "cells", "sources": [{"uri": sources}]}},
        {"name": "pretrain", "config": {"kind": "pretrain", "run": "base", "model": SHAPE, **shared}},
        {
            "name": "types",
            "config": {
                "kind": "finetune", "run": "types", "label_key": "cell_type", "annotator": False,
                **{key: value for key, value in shared.items() if key != "tokenizer"},
            },
        },
        {"name": "scores", "config": {"kind": "evaluate", **evaluate, "folder": str(report)}},
        {"name": "champion", "config": {"kind": "promote", "name": "tiny", "gate": gate}},
    ]  # fmt: skip


def start(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a pipeline as the command does, in a session of its own."""
    with (path.parent / "log").open("w") as errors, (path.parent / "out").open("w") as out:
        return subprocess.Popen(
            [*COMMAND, str(path), *arguments], env={**os.environ, **environment}, stdout=out, stderr=errors,
            start_new_session=True,
        )  # fmt: skip


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a pipeline; nothing of it is left."""
    try:
        return process.wait(900)
    finally:
        end_all(process)


def log_of(path: Path) -> str:
    """The end of what a pipeline logged."""
    return (path.parent / "log").read_text()[-4000:]


def finish(path: Path, *arguments: str) -> Result:
    """Run a pipeline to its end; the results of its stages."""
    assert wait(start(path, *arguments)) == 0, log_of(path)
    stages = json.loads((path.parent / "out").read_text())["stages"]
    return {stage["stage"]: stage["result"] for stage in stages}


def digests(results: Result) -> Result:
    """What has to be equal."""
    return {
        "corpus": results["cells"]["content_digest"],
        "weights": [results[name]["bundle_digest"] for name in ("pretrain", "types")],
        "scores": results["scores"]["scores"]["cytoray"],
        "registered": [results["champion"][key] for key in ("model", "version", "bundle_digest", "aliases")],
    }


def finish_with_kills(path: Path, once: Path) -> Result:
    """Run a pipeline of which everything is killed once at each stage, and run again each time."""
    chance = random.Random(SEED)
    fired: list[str] = []
    results: Result = {}
    for stage, moments in MOMENTS.items():
        point = chance.choice(moments + EVERYWHERE)
        fired.append(f"{stage}: {point}")
        if point == CHECKPOINT:
            kill_at_checkpoint(path, stage)
        else:
            folder = once / stage
            folder.mkdir(parents=True)
            process = start(path, "--until", stage, **{VARIABLE: f"{point}=killpg", ONCE_VARIABLE: str(folder)})
            assert wait(process) == -signal.SIGKILL, (fired, log_of(path))
            assert [found.name for found in folder.iterdir()] == [point], fired
        results = finish(path, "--until", stage)
    print(f"seed {SEED}: killed at {fired}")
    return results


def kill_at_checkpoint(path: Path, stage: str) -> None:
    """Kill the process group of a pipeline when its training has committed a checkpoint and has steps left."""
    store = yaml.safe_load(path.read_text())["store"]
    process = start(path, "--until", stage, **{VARIABLE: "train.after_step=sleep:0.5"})
    run, deadline = {"pretrain": "/base-", "types": "/types-"}[stage], time.monotonic() + 600
    try:
        while not [uri for uri in storage.list_files(f"{store}/runs") if run in uri and uri.endswith("/COMMIT.json")]:
            assert process.poll() is None, log_of(path)
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        end_all(process)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of cells to train on, and one that is held out."""
    folder = tmp_path_factory.mktemp("files")
    settings: dict[str, Any] = {"num_genes": 300, "mean_genes": 60.0, "num_types": 3}
    synthesise(folder / "sources", SynthConfig(num_cells=400, num_files=2, num_donors=4, **settings))
    synthesise(folder / "held-out", SynthConfig(num_cells=60, num_files=1, num_donors=2, **settings))
    return folder


def compare(write: Callable[[], Path], clear: Callable[[], None], once: Path) -> None:
    """An undisturbed pipeline and a killed one, in the same place, come to the same."""
    expected = digests(finish(write()))
    clear()
    assert digests(finish_with_kills(write(), once)) == expected


def test_killed_at_each_stage_on_a_disk(files: Path, tmp_path: Path):
    work = tmp_path / "work"

    def write() -> Path:
        work.mkdir()
        tracking = {"uri": f"sqlite:///{work}/mlflow.db", "journal_folder": str(work / "journal")}
        connect(tracking["uri"])
        stages = stages_of(f"{files / 'sources'}/", files / "held-out" / "part-000.h5ad", work / "report")
        document = {"kind": "pipeline", "name": "tiny", "store": str(work / "store"), "tracking": tracking}
        (work / "pipeline.yml").write_text(yaml.safe_dump({**document, "stages": stages}))
        return work / "pipeline.yml"

    compare(write, lambda: shutil.rmtree(work), tmp_path / "once")


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that starts an MLflow server with an empty database, in place of the one before; returns its URI."""
    environment = dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    prepare_environment(environment)
    with ExitStack() as stack:

        def start() -> str:
            stack.close()
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            folder = tmp_path / f"server-{port}"
            folder.mkdir()
            command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
            command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
            command += ["--artifacts-destination", str(folder / "artifacts")]
            log = stack.enter_context((folder / "log").open("wb"))
            stack.enter_context(started(command, ask_s=30, env=environment, cwd=folder, stdout=log, stderr=log))
            uri = f"http://127.0.0.1:{port}"
            _wait_for(uri)
            return uri

        yield start


def _wait_for(uri: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            connect(uri)
            return
        except RegistryError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_killed_at_each_stage_in_s3_with_an_mlflow_server(
    files: Path, s3_uri: str, mlflow_server: Callable[[], str], tmp_path: Path
):
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for file in sorted((files / "sources").glob("*.h5ad")):
        client.upload_file(str(file), bucket, f"{prefix}/sources/{file.name}")

    def write() -> Path:
        (tmp_path / "work").mkdir(exist_ok=True)
        tracking = {"uri": mlflow_server(), "journal_folder": str(tmp_path / "journal")}
        stages = stages_of(f"{s3_uri}/sources/", files / "held-out" / "part-000.h5ad", tmp_path / "work" / "report")
        document = {"kind": "pipeline", "name": "tiny", "store": f"{s3_uri}/store", "tracking": tracking}
        path = tmp_path / "work" / "pipeline.yml"
        path.write_text(yaml.safe_dump({**document, "stages": stages}))
        return path

    def clear() -> None:
        storage.delete_prefix(f"{s3_uri}/store")
        shutil.rmtree(tmp_path / "work")
        shutil.rmtree(tmp_path / "journal", ignore_errors=True)

    compare(write, clear, tmp_path / "once")
