"""Ingest, pretraining and fine-tuning as jobs of a token-protected head, with S3 and an MLflow server: killed, stopped,
retried, and the same weights as of an unbroken run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos_head import wait_until
from chaos_registry import Registry
from token_head import Site, token_site

from cytoray import storage
from cytoray.config import load_config
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import load_manifest
from cytoray.tracking.server import connect

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
pytestmark += [pytest.mark.filterwarnings("ignore::ResourceWarning")]
ROOT = Path(__file__).parents[2]
STEPS = 6
CORPUS = "configs/corpus/quickstart.yaml"
PRETRAIN = "configs/pretrain/quickstart.yaml"


@pytest.fixture
def registry(s3_uri: str, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path, None)
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture
def site(s3_uri: str, registry: Registry) -> Iterator[Site]:
    """The head's nodes have the credentials of the store; jobs do not carry them."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with token_site(variables) as site:
        yield site


def weights(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(f"{uri}/model.safetensors")).hexdigest()


def result(output: str) -> dict[str, object]:
    """What the job printed as JSON, at the end of its logs."""
    found: dict[str, object] = json.loads(output[output.rindex("\n{\n") :])
    return found


@dataclass(frozen=True)
class Place:
    """Where the stages read and write, as options of a submission."""

    store: str
    uri: str
    options: list[str]

    def submit(self, job: str, config: str, *more: str) -> list[str]:
        """The words of a submission of a training."""
        steps = ["--set", f"train.num_steps={STEPS}", "--set", "train.checkpoint_every=2"]
        return ["jobs", "submit", job, "--config", config, *self.options, *steps, *more]


@pytest.fixture
def place(s3_uri: str, registry: Registry, site: Site, tmp_path: Path) -> Place:
    """A store in which the corpus was made by a job."""
    store, uri = f"{s3_uri}/store", registry.tracking.uri
    source = f"{s3_uri}/raw/blood.h5ad"
    cells = load_config(IngestConfig, ROOT / CORPUS).sources[0].uri
    storage.write_bytes(source, Path(cells).read_bytes())
    ingest = ["jobs", "submit", "ingest", "--config", CORPUS, "--set", f"store={store}"]
    out, _ = site.run(*ingest, "--set", f"sources=[{{uri: {source}, rows: train}}]")
    assert result(out)["manifest_digest"] == load_manifest(store, "pbmc68k").digest
    options = ["--set", f"store={store}", "--set", f"tracking.uri={uri}", "--set", "tracking.artifact_location=null"]
    return Place(store, uri, [*options, "--set", f"tracking.journal_folder={tmp_path}/journal"])


def test_ingest_pretrain_and_finetune_are_jobs(place: Place, site: Site):
    pretrained = result(site.run(*place.submit("pretrain", PRETRAIN))[0])
    assert pretrained["step"] == STEPS
    tuned = result(site.run(*place.submit("finetune", "configs/finetune/quickstart.yaml"))[0])
    assert tuned["step"] == STEPS
    client = connect(place.uri)
    runs = client.search_runs([client.get_experiment_by_name("pbmc68k").experiment_id])
    assert {run.info.run_id for run in runs} >= {pretrained["mlflow_run_id"], tuned["mlflow_run_id"]}
    listed = site.json("jobs", "ls")["jobs"]
    assert {row["job"] for row in listed} == {"ingest", "pretrain", "finetune"}
    assert {row["status"] for row in listed} == {"succeeded"}


def test_a_killed_and_stopped_training_ends_with_the_weights_of_an_unbroken_one(
    place: Place, site: Site, tmp_path: Path
):
    whole = result(site.run(*place.submit("pretrain", PRETRAIN, "--set", "run=whole"))[0])
    once = tmp_path / "once"
    once.mkdir()
    points = "CYTORAY_FAILPOINTS=checkpoint.after_commit=sleep:900@1", f"CYTORAY_FAILPOINTS_ONCE={once}"
    variables = [word for point in points for word in ("--env", point)]
    broken = place.submit("pretrain", PRETRAIN, "--set", "run=broken", "--name", "broken", *variables)
    site.json(*broken, "--no-wait")
    wait_until(lambda: list(once.iterdir()), "the first checkpoint is committed")
    for driver in site.drivers("jobs.pretrain"):
        driver.send_signal(signal.SIGKILL)
    assert site.json("jobs", "attach", "broken", code=1)["status"] == "failed"

    (once / "checkpoint.after_commit").unlink()  # so that the second attempt waits at its first checkpoint
    assert site.json("jobs", "retry", "broken", "--no-wait")["attempt"] == 2
    wait_until(lambda: list(once.iterdir()), "the second attempt has committed a checkpoint")
    stopped = site.json("jobs", "stop", "broken")
    assert (stopped["status"], stopped["exit_code"]) == ("stopped", 75)

    out, err = site.run("jobs", "retry", "broken")
    assert "attempt 3 submitted" in err
    done = result(out)
    assert done["step"] == STEPS
    assert weights(str(done["bundle"])) == weights(str(whole["bundle"]))
    _, err = site.run(*broken)
    assert "attempt 3 is there already" in err


def test_the_doctor_finds_nothing_wrong_with_a_good_cluster(s3_uri: str, registry: Registry, site: Site):
    options = ["--store", f"{s3_uri}/store", "--uri", registry.tracking.uri, "--cluster", site.head.dashboard]
    found = site.json("doctor", *options, "--time-limit", "120")["findings"]
    assert [each for each in found if each["outcome"] == "fail"] == []
    checks = ("store.conditional_write", "mlflow.reach", "mlflow.artifacts", "cluster.auth", "cluster.version")
    good = {each["check"] for each in found if each["outcome"] == "ok"}
    assert good >= set(checks)
    wrong = site.json("doctor", *options, code=2, RAY_AUTH_TOKEN="f" * 64)["findings"]
    assert [each["check"] for each in wrong if each["outcome"] == "fail"] == ["cluster.auth"]
