"""infra/single-server, run: its own scripts start a real PostgreSQL, MLflow behind its auth app, and an S3 server.

`make test-single-server` makes the environment of the servers (.venv-mlflow). Units of systemd: test_units.py.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import botocore.exceptions
import httpx
import pytest
import torch
from mlflow_postgres import SERVERS, database_user, new_server_folder
from processes import end_all

from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.models import register, resolve
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import RunLog, TrackingConfig, shipping
from cytoray.tracking import server as tracking_server
from cytoray.tracking.server import connect

from .conftest import INFRA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
START_S = 240  # seconds; MLflow creates its tables in ten, on a busy machine in two minutes
SECRET_NAMES = ("mlflow-admin", "mlflow-session", "mlflow-user", "database-password", "s3-user", "s3-secret")


@dataclass
class Server:
    """The servers of one machine on free ports, each of which can be killed and started again."""

    folder: Path
    ports: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What server.env says, with this test's places."""
        lines = (INFRA / "single-server" / "server.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        database, s3, mlflow = (self.ports[name] for name in ("postgres", "s3", "mlflow"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
        return {
            **kept, **settings,
            "PATH": f"{SERVERS / 'bin'}:{os.environ['PATH']}", "SECRETS": str(self.folder / "secrets"),
            "RUNTIME": str(self.folder / "runtime"), "REREAD_S": "1", "WORKERS": "1",
            "S3_LISTEN": f"127.0.0.1:{s3}", "S3_META": f"sqlite3://{self.folder}/meta.db",
            "S3_DATA": f"{self.folder}/blobs", "S3_CACHE": f"{self.folder}/cache",
            "MLFLOW_DATABASE": f"postgresql+psycopg2://mlflow@127.0.0.1:{database}/mlflow", "PORT": str(mlflow),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{mlflow}", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "MLFLOW_TRACKING_URI": self.mlflow,
        }  # fmt: skip

    @property
    def mlflow(self) -> str:
        """MLflow's address."""
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    def secret(self, name: str) -> str:
        """The value of a secret."""
        return (self.folder / "secrets" / name).read_text()

    def start(self, name: str) -> None:
        """Start a server and wait until it answers."""
        commands = {
            "postgres": ["postgres", "-D", str(self.folder / "postgres"), "-k", str(self.folder / "postgres"),
                         "-p", str(self.ports["postgres"]), "-h", "127.0.0.1"],
            "s3": ["/bin/sh", str(INFRA / "single-server" / "start_s3.sh")],
            "mlflow": ["/bin/sh", str(INFRA / "mlflow" / "start_mlflow.sh")],
        }  # fmt: skip
        account = {"user": database_user()} if name == "postgres" else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                commands[name],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                **account,
            )
        self._wait(name, self._answers)

    def kill(self, name: str) -> None:
        """End a server with everything it started, without a chance to tidy up."""
        end_all(self.running.pop(name))

    def _answers(self, name: str) -> bool:
        if name == "postgres":
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.ports["postgres"])) == 0
        path = {"s3": f"http://127.0.0.1:{self.ports['s3']}/minio/health/live", "mlflow": f"{self.mlflow}/health"}[name]
        try:
            return httpx.get(path, timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _wait(self, name: str, check: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not check(name):
            log = (self.folder / f"{name}.log").read_text()[-3000:]
            assert self.running[name].poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)

    def sql(self, statement: str) -> None:
        """Run a statement as PostgreSQL's administrator."""
        code = (
            "import sys, psycopg2; c = psycopg2.connect(host=sys.argv[1], port=sys.argv[2], user='postgres', "
            "dbname='postgres'); c.autocommit = True; c.cursor().execute(sys.argv[3])"
        )
        words = [
            str(SERVERS / "bin" / "python"),
            "-c",
            code,
            str(self.folder / "postgres"),
            str(self.ports["postgres"]),
        ]
        subprocess.run([*words, statement], check=True, timeout=60)


def _free_ports(*names: str) -> dict[str, int]:
    probes = {name: socket.socket() for name in names}
    for probe in probes.values():
        probe.bind(("127.0.0.1", 0))
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """All three servers, set up as by setup.sh and first_steps.py."""
    folder = new_server_folder("runtime", "cache", "blobs", secret_names=SECRET_NAMES, target="test-single-server")
    server = Server(folder, _free_ports("postgres", "s3", "mlflow"))
    try:
        server.start("postgres")
        server.sql(f"CREATE ROLE mlflow LOGIN PASSWORD '{server.secret('database-password')}'")
        server.sql("CREATE DATABASE mlflow OWNER mlflow")
        server.start("s3")
        server.start("mlflow")
        steps = [sys.executable, str(INFRA / "single-server" / "first_steps.py"), str(folder / "secrets")]
        said = [subprocess.run(steps, env=server.environment, check=True, timeout=120, capture_output=True, text=True)
                for _ in range(2)]  # fmt: skip
        assert said[0].stdout.split("\n")[:3] == ["bucket models", "bucket store", "user cytoray of MLflow"]
        assert said[1].stdout == ""  # run again, it changes nothing
        yield server
    finally:
        end_all(*server.running.values())
        shutil.rmtree(folder)


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    """The environment of a job on this server."""
    monkeypatch.setattr(shipping, "LONGEST_PAUSE_S", 1.0)
    monkeypatch.setattr(tracking_server, "PROBE_TIMEOUT_S", 60)  # on a busy machine
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": server.environment["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": server.secret("s3-user"), "AWS_SECRET_ACCESS_KEY": server.secret("s3-secret"),
        "MLFLOW_TRACKING_USERNAME": "cytoray", "MLFLOW_TRACKING_PASSWORD": server.secret("mlflow-user"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return TrackingConfig(
        uri=server.mlflow, artifact_location="s3://models/mlflow", journal_folder=str(server.folder / "journal")
    )


def _save_bundle(folder: Path) -> Path:
    vocabulary = GeneVocabulary([f"GENE{n}" for n in range(20)] + ["<pad>", "<cls>", "<eoc>"])
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1, num_labels=2
    )
    torch.manual_seed(1)
    model = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(model, vocabulary, TokenizerConfig(), ("T cell", "B cell"), {"trained_by": "test"}), folder)
    return folder


def test_a_model_goes_through_the_registry(server: Server, client: TrackingConfig, tmp_path: Path) -> None:
    bundle = _save_bundle(tmp_path / "bundle")
    version = register(bundle, name="annotator", tracking=client, alias="champion")
    assert version.source_uri.startswith("s3://models/mlflow/")
    loaded, found = resolve("models:/annotator@champion", tracking=client, cache_folder=tmp_path / "cache")
    assert (found, loaded.digest) == (version, load_bundle(bundle).digest)


def test_strangers_are_refused(server: Server, client: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    known = ("cytoray", server.secret("mlflow-user"))
    assert httpx.get(url, timeout=30).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(url, timeout=30, auth=("admin", "password1234")).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(url, timeout=30, auth=known).status_code == httpx.codes.OK
    elsewhere = httpx.get(url, timeout=30, auth=known, headers={"Host": "evil.example"})
    assert elsewhere.status_code == httpx.codes.FORBIDDEN  # against DNS rebinding
    users = f"{server.mlflow}/api/2.0/mlflow/users/create"
    mine = httpx.post(users, json={"username": "other", "password": "x" * 20}, timeout=30, auth=known)
    assert mine.status_code == httpx.codes.FORBIDDEN  # not an administrator
    stranger = boto3.client("s3", aws_access_key_id=server.secret("s3-user"), aws_secret_access_key="wrong")
    with pytest.raises(botocore.exceptions.ClientError, match=r"SignatureDoesNotMatch|AccessDenied|403"):
        stranger.list_objects_v2(Bucket="models")


def test_no_password_is_in_arguments(server: Server) -> None:
    arguments = "\n".join(_arguments(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert "mlflow" in arguments
    assert [name for name in SECRET_NAMES if server.secret(name) in arguments] == []


def _arguments(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_kills_of_mlflow_and_postgres_lose_no_event(
    server: Server, client: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog.start(client, run_name="through-kills")
    with caplog.at_level(logging.WARNING, logger="cytoray"):
        for number, victim in enumerate(["mlflow", "postgres"]):
            first = 20 * number
            for step in range(first, first + 10):
                log.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            server.kill(victim)
            for step in range(first + 10, first + 20):
                log.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            _wait_for_failure(caplog)
            server.start(victim)
    assert log.finish(wait_s=START_S), (server.folder / "mlflow.log").read_text()[-3000:]
    run = connect(client.uri).get_run(log.mlflow_run_id)
    history = connect(client.uri).get_metric_history(run.info.run_id, "loss")
    assert run.info.status == "FINISHED"
    assert sorted(entry.step for entry in history) == list(range(40))  # none lost, none twice
    assert {entry.step: entry.value for entry in history} == {step: 1.0 / (step + 1) for step in range(40)}


def _wait_for_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The shipper has noticed that the server is away: the kill has had its effect."""
    deadline = time.monotonic() + 60
    while "tracking continues in" not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.1)
    caplog.clear()


def test_a_new_database_password_needs_no_restart(server: Server, client: TrackingConfig) -> None:
    before = server.running["mlflow"].pid
    password = secrets.token_hex(24) + r":a\b"  # with what libpq's password file has to escape
    server.sql(f"ALTER ROLE mlflow PASSWORD '{password}'")
    (server.folder / "secrets" / "database-password").write_text(password)
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mlflow'")
    url, known = (
        f"{server.mlflow}/api/2.0/mlflow/experiments/search?max_results=1",
        ("cytoray", server.secret("mlflow-user")),
    )
    deadline = time.monotonic() + 60
    while httpx.get(url, timeout=30, auth=known).status_code != httpx.codes.OK:
        assert time.monotonic() < deadline, (server.folder / "mlflow.log").read_text()[-3000:]
        time.sleep(0.2)
    assert server.running["mlflow"].pid == before
