"""Settings and fixtures of all tests: Ray's authentication, chosen before anything imports Ray, and one small cluster.

Two processes run them side by side (``-n 2 --dist loadgroup``): one begins with all tests that use Ray, so that there
is one cluster at a time; the other begins with the rest, module by module, so that each fixture is made once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # not the user's own token
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a Ray that starts by itself would outlive the test that needed none
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Before anything imports torch: threads of several processes that wait for each other in loops cost most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
hypothesis.settings.register_profile("untimed", deadline=None)  # no test depends on the load of the machine
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist hand out groups in the order of the tests, not the group with the most tests first."""
    if config.pluginmanager.hasplugin("xdist"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the group that each test is run with, in one process; put the longest groups first."""
    items.sort(key=lambda item: (not _uses_ray(item), "/training/" not in item.nodeid))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if _uses_ray(item) else item.location[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if xdist has not read the groups: two processes would start Ray at once and make each fixture twice."""
    if getattr(session.config.option, "loadgroup", False) and session.items:
        assert session.items[0].nodeid.rpartition("@")[1], "pytest-xdist ignores the groups of tests"


def _uses_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None or "ray_cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def _cluster() -> Iterator[ExitStack]:
    """Ends Ray when it is closed."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def no_ray_is_left(request: pytest.FixtureRequest, _cluster: ExitStack) -> Iterator[None]:
    """The first test that does not use Ray ends the session's cluster; such tests leave no Ray running."""
    uses_ray = _uses_ray(request.node)
    if not uses_ray:
        _cluster.close()
    yield
    assert uses_ray or not _is_ray_running(), "this test has started Ray"


def _is_ray_running() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and getattr(ray, "is_initialized", bool)()


@pytest.fixture(scope="session")
def ray_cluster(_cluster: ExitStack) -> None:
    """A local Ray of two logical CPUs, kept until the last test that uses Ray: those come first."""
    from cytoray.cluster import connected

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _cluster.enter_context(connected(num_cpus=2))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback, kept for the session, with one bucket called ``cells``."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket="cells")
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, made once for all processes of the tests: its migrations take seconds."""
    from cytoray.tracking.server import connect

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "mlflow.db").exists():
            connect(f"sqlite:///{folder}/mlflow.part")
            (folder / "mlflow.part").rename(folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_uri(migrated_database: Path, tmp_path: Path) -> str:
    """An empty MLflow of one test: the file ``mlflow.db`` in its folder; no server needed."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def s3_uri(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix in the bucket of ``s3_endpoint``, which the environment names while this test runs."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"s3://cells/{uuid.uuid4().hex[:12]}"
