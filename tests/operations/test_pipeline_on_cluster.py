"""A pipeline on three nodes with a token, S3, and MLflow with its auth app on PostgreSQL: each stage is a job.

At each stage the pipeline is killed, then the driver of its job; MLflow's servers are killed under a running one. It
ends with the corpus, weights and registered version of a pipeline that nothing disturbed. `make test-cluster`; with
CLUSTER_PAGE=folder the page is kept there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from chaos_head import joined_node, live_nodes, wait_until
from mlflow_postgres import MLFLOW, POSTGRES, MlflowOnPostgres, mlflow_on_postgres
from processes import started
from token_head import CYTORAY, Site, token_site

from cytoray import storage
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.failpoints import ONCE_VARIABLE, VARIABLE
from cytoray.tracking.server import connect

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(2400)]
pytestmark += [pytest.mark.filterwarnings("ignore::ResourceWarning")]
ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("CRASH_SEED", "1"))
END_S = 900.0  # for a pipeline, on a busy machine
MODULE = "cytoray.operations.pipeline.stage_job"
STEPS = 6
# Where the driver of each stage's job is killed: one of these, drawn by the seed.
POINTS = {
    "cells": ("ingest.after_spill", "ingest.before_commit", "ingest.after_commit"),
    "pretrain": ("checkpoint.after_commit", "train.before_done", "train.after_done"),
    "types": ("checkpoint.after_commit", "train.before_done", "train.after_done"),
    "scores": ("pipeline.before_report", "pipeline.after_report"),
    "candidate": ("register.before_upload", "register.after_upload", "register.after_version"),
    "report": ("assess.after_piece", "record.after_upload", "record.after_figure"),
    "champion": ("promote.before_score_tags", "promote.after_score_tag", "register.before_alias"),
}
Stages = dict[str, dict[str, Any]]


def stages_of(place: str) -> list[dict[str, Any]]:
    """From files of cells to a champion, with an assessment that is recorded on the version."""
    train = {"num_steps": STEPS, "cells_per_step": 16, "checkpoint_every": 2}
    shape = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0}
    run = {"corpus": "cells", "train": train, "workers": {"num_workers": 2}}
    held_out = f"{place}/held-out.h5ad"
    evaluate = {"data": {"uri": held_out}, "label_key": "cell_type", "baseline_corpus": "cells"}
    gate = {"scores": "of the pipeline", "metric": "macro_f1", "at_least": 0.0}
    tune = {"kind": "finetune", "run": "types", "label_key": "cell_type", "annotator": False, **run}
    report = {"kind": "assess-annotation", "data": held_out, "label_key": "cell_type", "epochs": 1, "record": True}
    champion = {"kind": "promote", "name": "tiny", "gate": gate, "assessments": {"allow_loss": ["annotation"]}}
    configs = {
        "cells": {"kind": "ingest", "corpus": "cells", "sources": [{"uri": f"{place}/sources/"}]},
        "pretrain": {"kind": "pretrain", "run": "base", "model": shape, "tokenizer": {"max_length": 41}, **run},
        "types": tune,
        "scores": {"kind": "evaluate", **evaluate},
        "candidate": {"kind": "promote", "name": "tiny", "alias": "candidate"},
        "report": report,
        "champion": champion,
    }
    taking = {"scores": "types", "candidate": "types", "champion": "types"}
    return [
        {"name": name, "config": config} | ({"model": taking[name]} if name in taking else {})
        for name, config in configs.items()
    ]


@dataclass
class Lab:
    """Everything that a pipeline needs, and its file."""

    site: Site
    mlflow: MlflowOnPostgres
    place: str  # s3:// prefix
    folder: Path
    number: int = field(default=0)

    @property
    def store(self) -> str:
        """The store of the pipeline."""
        return f"{self.place}/store"

    def clear(self) -> None:
        """Remove all that pipelines have made, so that the next one makes it anew in the same place."""
        if self.number:
            storage.delete_prefix(self.store)
            self.mlflow.begin_anew()
            shutil.rmtree(self.folder / "journal", ignore_errors=True)
        self.number += 1
        tracking = {"uri": self.mlflow.uri, "journal_folder": str(self.folder / "journal")}
        document = {"kind": "pipeline", "name": "tiny", "store": self.store, "tracking": tracking}
        (self.folder / "pipeline.yml").write_text(yaml.safe_dump({**document, "stages": stages_of(self.place)}))

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """``cytoray pipeline run``, which has ended when the block is left; its jobs go on."""
        words = [sys.executable, "-c", CYTORAY, "pipeline", "run", str(self.folder / "pipeline.yml"), "--json"]
        words += ["--cluster", self.site.head.dashboard, *arguments]
        with (
            (self.folder / "log").open("wb") as log,
            (self.folder / "out").open("wb") as out,
            started(words, env=self.site.environment, cwd=ROOT, stdout=out, stderr=log) as process,
        ):
            yield process

    def log(self) -> str:
        """What the last pipeline has logged, with the logs of its jobs."""
        return (self.folder / "log").read_text()

    def finish(self, *arguments: str) -> Stages:
        """Run the pipeline to its end; the states of its stages by name."""
        with self.started(*arguments) as process:
            return self.stages(process)

    def stages(self, process: subprocess.Popen[bytes]) -> Stages:
        """Wait for the end of a pipeline that succeeds; the states of its stages by name."""
        out = self.folder / "out"
        assert process.wait(END_S) == 0, f"{self.log()[-6000:]} {out.read_text()[-2000:]}"
        return {stage["stage"]: stage for stage in json.loads(out.read_text())["stages"]}

    def failing(self, points: str, once: Path) -> list[str]:
        """Options with which the jobs of a pipeline have failpoints."""
        once.mkdir(parents=True)
        environment = yaml.safe_load((ROOT / "configs" / "runtime_env.yaml").read_text())
        environment["env_vars"] |= {VARIABLE: points, ONCE_VARIABLE: str(once)}
        (once.parent / "runtime_env.yaml").write_text(yaml.safe_dump(environment))
        return ["--runtime-env", str(once.parent / "runtime_env.yaml")]

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The last attempt of each job by its name."""
        return {row["name"]: row for row in self.site.json("jobs", "ls")["jobs"]}

    def registered(self) -> list[Any]:
        """Versions with digests, aliases and lineage, without ids of runs."""
        client = connect(self.mlflow.uri)
        moving = ("cytoray.run_id", "cytoray.bundle_bytes")
        found = []
        for version in client.search_model_versions("name='tiny'"):
            aliases = sorted(client.get_model_version("tiny", version.version).aliases)
            tags = {key: value for key, value in version.tags.items() if key not in moving}
            found.append([version.version, aliases, tags])
        return found

    def digests(self, stages: Stages) -> dict[str, Any]:
        """What has to be equal, of the results, the registry and the page."""
        results = {name: stage["result"] for name, stage in stages.items()}
        page = json.loads(storage.read_bytes(f"{self.store}/pipelines/tiny/pipeline.json"))["stages"]
        html = storage.read_bytes(f"{self.store}/pipelines/tiny/index.html").decode()
        shown = [results["cells"]["manifest_digest"][:12], results["champion"]["bundle_digest"][:12]]
        return {
            "corpus": results["cells"]["content_digest"],
            "weights": [results[name]["bundle_digest"] for name in ("pretrain", "types")],
            "scores": results["scores"]["scores"],
            "report": results["report"]["metrics"],
            "champion": [results["champion"][key] for key in ("model", "version", "bundle_digest", "aliases")],
            "lineage": self.registered(),
            "page": [[stage["stage"], stage["state"], stage["key"]] for stage in page],
            "shown": [digest in html for digest in shown],
        }


@pytest.fixture(scope="module")
def lab(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        mlflow = stack.enter_context(mlflow_on_postgres("s3://cells/mlflow"))
        # MLflow's client would go on for four minutes by itself.
        variables |= mlflow.credentials | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        for name, value in variables.items():
            patch.setenv(name, value)
        site = stack.enter_context(token_site(variables))
        for _ in range(2):
            stack.enter_context(joined_node(site.head, num_cpus=2))
        wait_until(lambda: len(live_nodes(site.head)) == 3, "three nodes are alive")
        lab = Lab(site, mlflow, "s3://cells/pipeline", folder)
        settings: dict[str, Any] = {"num_genes": 300, "mean_genes": 60.0, "num_types": 3}
        synthesise(folder / "sources", SynthConfig(num_cells=400, num_files=2, num_donors=4, **settings))
        synthesise(folder / "held-out", SynthConfig(num_cells=60, num_files=1, num_donors=2, **settings))
        for file in (folder / "sources").glob("*.h5ad"):
            storage.write_bytes(f"{lab.place}/sources/{file.name}", file.read_bytes())
        storage.write_bytes(f"{lab.place}/held-out.h5ad", (folder / "held-out" / "part-000.h5ad").read_bytes())
        yield lab


@pytest.fixture(scope="module")
def unbroken(lab: Lab) -> dict[str, Any]:
    """The digests of a pipeline that nothing disturbed."""
    lab.clear()
    found = lab.digests(lab.finish())
    if folder := os.environ.get("CLUSTER_PAGE"):
        data = storage.read_bytes(f"{lab.store}/pipelines/tiny/index.html")
        (Path(folder) / "page.html").write_bytes(data)
    return found


def test_each_stage_is_a_job(lab: Lab, unbroken: dict[str, Any]):
    rows = lab.jobs().values()
    assert {row["status"] for row in rows} == {"succeeded"}
    assert sorted(row["stage"] for row in rows) == [
        "assess-annotation", "evaluate", "finetune", "ingest", "pretrain", "promote", "promote",
    ]  # fmt: skip
    assert [state for _, state, _ in unbroken["page"]] == ["done"] * len(POINTS)
    assert unbroken["shown"] == [True, True]
    assert unbroken["champion"][:2] == ["models:/tiny@champion", 1]
    assert lab.finish() != {}
    assert json.loads((lab.folder / "out").read_text())["ran"] == [], "all is done"
    assert not list(Path("/tmp").glob("cytoray-reports-*"))


def test_killed_at_each_stage(lab: Lab, unbroken: dict[str, Any]):
    lab.clear()
    chance = random.Random(SEED)
    stages: Stages = {}
    for stage in POINTS:
        point = chance.choice((*POINTS[stage], "pipeline.before_record"))
        print(f"{stage}: {point}")
        kill_at(lab, stage, point)
        stages = lab.finish("--until", stage)
    assert lab.digests(stages) == unbroken


def kill_at(lab: Lab, stage: str, point: str) -> None:
    """Kill a pipeline while a job of its stage waits at a failpoint, then the job's driver under a second pipeline."""
    once = lab.folder / "points" / stage / "once"
    options = ["--until", stage, *lab.failing(f"{point}=sleep:900", once)]
    with lab.started(*options) as first:
        wait_until(lambda: list(once.iterdir()) or first.poll() is not None, f"{stage} is at {point}")
        assert first.poll() is None, lab.log()[-4000:]
        first.kill()
    (before,) = [row for row in lab.jobs().values() if row["status"] == "running"]
    with lab.started(*options) as second:
        wait_until(lambda: "follows job" in lab.log() or second.poll() is not None, "it follows the job")
        assert second.poll() is None, lab.log()[-4000:]
        (driver,) = lab.site.drivers(MODULE)
        driver.kill()
        assert second.wait(END_S) == 1, lab.log()[-4000:]
    after = lab.jobs()[before["name"]]
    assert (after["attempt"], after["status"]) == (before["attempt"], "failed")


def test_outages_of_mlflow_and_of_its_database(lab: Lab, unbroken: dict[str, Any]):
    lab.clear()
    once = lab.folder / "points" / "outage" / "once"
    away = "register.after_upload"
    with lab.started(*lab.failing(f"{away}=sleep:20,checkpoint.after_commit=sleep:5", once)) as process:
        wait_until(lambda: (once / "checkpoint.after_commit").exists() or process.poll() is not None, "a checkpoint")
        assert process.poll() is None, lab.log()[-4000:]
        lab.mlflow.kill(MLFLOW)
        pretrained = f"{lab.store}/pipelines/tiny/stages/pretrain/LATEST.json"
        wait_until(lambda: storage.exists(pretrained) or process.poll() is not None, "pretrain is done without MLflow")
        lab.mlflow.start(MLFLOW)
        wait_until(lambda: (once / away).exists() or process.poll() is not None, "a bundle is uploaded")
        assert process.poll() is None, lab.log()[-4000:]
        lab.mlflow.kill(POSTGRES)
        wait_until(lambda: "is tried again" in lab.log() or process.poll() is not None, "its stage waits")
        lab.mlflow.start(POSTGRES)
        stages = lab.stages(process)
    assert lab.digests(stages) == unbroken
    lab.site.json("mlflow", "sync", str(lab.folder / "journal"), "--uri", lab.mlflow.uri)
    client = connect(lab.mlflow.uri)
    history = client.get_metric_history(stages["pretrain"]["result"]["mlflow_run_id"], "train/loss")
    assert sorted(entry.step for entry in history) == list(range(1, STEPS + 1)), "no step is lost, none is there twice"
