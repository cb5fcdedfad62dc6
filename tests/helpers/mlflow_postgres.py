"""An MLflow server behind its auth app, on a PostgreSQL of its own and with files in S3: both may be killed.

`make test-cluster` makes the environment of the server (.venv-mlflow); CYTORAY_MLFLOW_VENV names another one.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos_head import free_port, wait_until
from processes import end_all

ROOT = Path(__file__).parents[2]
SERVERS = Path(os.environ.get("CYTORAY_MLFLOW_VENV", ROOT / ".venv-mlflow"))
POSTGRES, MLFLOW = "postgres", "mlflow"
SECRET_NAMES = ("mlflow-admin", "mlflow-session", "database-password")


@dataclass
class MlflowOnPostgres:
    """Two servers on free ports, each of which can be killed and started again."""

    folder: Path
    artifacts: str  # s3:// prefix
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (POSTGRES, MLFLOW)})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    database: str = "mlflow1"

    @property
    def uri(self) -> str:
        """MLflow's address."""
        return f"http://127.0.0.1:{self.ports[MLFLOW]}"

    @property
    def credentials(self) -> dict[str, str]:
        """Variables with which a client is let in."""
        password = (self.folder / "secrets" / "mlflow-admin").read_text()
        return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}

    def start(self, name: str) -> None:
        """Start one of them and wait until it answers."""
        data = str(self.folder / POSTGRES)
        command = {
            POSTGRES: ["postgres", "-D", data, "-k", data, "-p", str(self.ports[POSTGRES]), "-h", "127.0.0.1"],
            MLFLOW: ["/bin/sh", str(ROOT / "infra" / "mlflow" / "start_mlflow.sh")],
        }[name]
        options: dict[str, Any] = {"env": self._environment(), "cwd": self.folder, "start_new_session": True}
        options |= {"user": database_user()} if name == POSTGRES else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, **options)
        wait_until(lambda: self._answers(name), f"{name} answers")

    def kill(self, name: str) -> None:
        """End one of them with everything it started, without a chance to tidy up."""
        end_all(self.running.pop(name))

    def begin_anew(self) -> None:
        """Give MLflow an empty database in place of the one it has."""
        self.kill(MLFLOW)
        self.database = f"mlflow{int(self.database.removeprefix('mlflow')) + 1}"
        self.sql(f"CREATE DATABASE {self.database} OWNER mlflow")
        self.start(MLFLOW)

    def sql(self, statement: str) -> None:
        """Run a statement as PostgreSQL's administrator."""
        words = ["psql", "-h", str(self.folder / POSTGRES), "-p", str(self.ports[POSTGRES]), "-U", "postgres"]
        subprocess.run([*words, "-qc", statement, "postgres"], check=True, timeout=120)

    def _environment(self) -> dict[str, str]:
        port = self.ports[MLFLOW]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        return kept | {
            "PATH": f"{SERVERS / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": "", "WORKERS": "1", "PORT": str(port),
            "SECRETS": str(self.folder / "secrets"), "RUNTIME": str(self.folder / "runtime"),
            "MLFLOW_DATABASE": f"postgresql+psycopg2://mlflow@127.0.0.1:{self.ports[POSTGRES]}/{self.database}",
            "MLFLOW_ARTIFACTS": self.artifacts, "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        }  # fmt: skip

    def _answers(self, name: str) -> bool:
        assert self.running[name].poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
        if name == POSTGRES:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.ports[POSTGRES])) == 0
        try:
            return httpx.get(f"{self.uri}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def new_server_folder(*names: str, secret_names: Sequence[str], target: str) -> Path:
    """Make a folder with a new PostgreSQL cluster, secrets and other folders; skips if a server is not installed.

    ``target`` of make installs MLflow's.
    """
    if not (SERVERS / "bin" / "mlflow").exists():
        pytest.skip(f"{SERVERS} has no MLflow server: run `make {target}`")
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed: on Debian, apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="cytoray-server-"))  # pytest's own cannot be entered by another user
    folder.chmod(0o755)
    for name in ("secrets", POSTGRES, *names):
        (folder / name).mkdir(mode=0o700)
    for name in secret_names:
        (folder / "secrets" / name).write_text(secrets.token_hex(24))
    data, user = folder / POSTGRES, database_user()
    shutil.chown(data, user=user)
    words = ["initdb", "--auth-local=trust", "--auth-host=scram-sha-256", "-U", "postgres", "-D", str(data)]
    try:
        subprocess.run(words, check=True, timeout=300, user=user, stdout=subprocess.DEVNULL, cwd=folder)
    except subprocess.SubprocessError:
        shutil.rmtree(folder)
        raise
    return folder


@contextmanager
def mlflow_on_postgres(artifacts: str) -> Iterator[MlflowOnPostgres]:
    """Both servers, running; skips if one is not installed."""
    folder = new_server_folder("runtime", secret_names=SECRET_NAMES, target="test-cluster")
    servers = MlflowOnPostgres(folder, artifacts)
    try:
        servers.start(POSTGRES)
        password = (folder / "secrets" / "database-password").read_text()
        servers.sql(f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'")
        servers.sql(f"CREATE DATABASE {servers.database} OWNER mlflow")
        servers.start(MLFLOW)
        yield servers
    finally:
        end_all(*servers.running.values())
        shutil.rmtree(folder)


def database_user() -> str:
    """Return who runs PostgreSQL, which refuses to run as root."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid()).pw_name
    return "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
