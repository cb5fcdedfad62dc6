"""Jobs whose process, or whose service, is killed: they go on where they were, and are as if nothing had been."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoray.failpoints import ONCE_VARIABLE, VARIABLE
from cytoray.serving.jobs.alive import is_alive
from cytoray.serving.jobs.hub import Jobs
from cytoray.serving.jobs.keeper import Keeper, ProcessWorker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_800)]
WAIT_S = 400.0


@pytest.fixture
def service(serve_jobs: Callable[..., Any]) -> Any:
    """A service whose jobs are done by processes."""
    found = serve_jobs()
    _use_processes(found.jobs)
    yield found
    found.jobs.keeper.close()


def _use_processes(jobs: Jobs) -> None:
    jobs.keeper = Keeper(jobs.files, jobs.config, cache_folder="unused", start=ProcessWorker)


def _wait(keeper: Keeper) -> list[int]:
    """Wait for the processes that a keeper has started; returns how they ended."""
    return [worker._process.wait(WAIT_S) for worker in keeper._workers.values()]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "in time"
        time.sleep(0.05)


def _parts(service: Any, job: str) -> dict[str, int]:
    folder = Path(service.jobs.files.job(job).answers)
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}


@pytest.mark.parametrize(
    "points",
    ["offline.after_part=kill@1,jobs.before_result=kill@1", "offline.before_part=kill@2,jobs.before_end=kill@1"],
)
def test_a_killed_process_and_a_restarted_service_lose_nothing(
    points: str, service: Any, cells_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"task": "annotate", "input": {"upload": service.upload(cells_file)}}
    whole = service.submit(**asked).json()["id"]
    service.jobs.keeper.look()
    assert _wait(service.jobs.keeper) == [0]
    service.jobs.keeper.look()

    monkeypatch.setenv(VARIABLE, points)
    monkeypatch.setenv(ONCE_VARIABLE, str(tmp_path))
    job = service.submit(**asked).json()["id"]
    service.jobs.keeper.look()
    assert _wait(service.jobs.keeper) == [-9]
    first = _parts(service, job)
    assert len(first) == 1
    assert service.ask("GET", f"/v1/jobs/{job}").json()["state"] == "running"
    service.jobs.keeper.look()  # it is started again, and killed before it writes the result or its end
    assert _wait(service.jobs.keeper) == [-9]
    second = _parts(service, job)
    assert len(second) == 3
    assert first.items() <= second.items()

    _use_processes(service.jobs)  # the service is another one, which knows nothing of the former
    service.jobs.keeper.look()
    assert _wait(service.jobs.keeper) == [0]
    service.jobs.keeper.look()
    ended, wanted = (service.ask("GET", f"/v1/jobs/{each}").json() for each in (job, whole))
    assert (ended["state"], ended["attempts"], ended["done"]) == ("succeeded", 3, 21)
    assert ended["result"]["sha256"] == wanted["result"]["sha256"]
    assert _parts(service, job) == {}
    assert service.jobs.files.queue() == []


def test_a_job_that_runs_is_cancelled_at_once_and_leaves_nothing(
    service: Any, cells_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "offline.after_part=sleep:600")
    job = service.submit(task="embed", input={"upload": service.upload(cells_file)}).json()["id"]
    service.jobs.keeper.look()
    _until(lambda: len(_parts(service, job)) == 1)
    folder = service.jobs.files.job(job)
    process = folder.beat().process
    assert is_alive(process)
    assert service.ask("DELETE", f"/v1/jobs/{job}").json()["state"] == "cancelling"
    assert _wait(service.jobs.keeper) == [-9]  # by itself: its keeper may be another replica's, or dead
    service.jobs.keeper.look()
    assert service.ask("GET", f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert not is_alive(process)
    assert _parts(service, job) == {}
    assert not list((Path(folder.uri) / "result").glob("*"))


def test_a_large_job_is_done_by_ray_data(service: Any, cells_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"task": "annotate", "input": {"upload": service.upload(cells_file)}}
    ids = []
    for few_cells in ("10000", "0"):
        monkeypatch.setenv("CYTORAY_FEW_CELLS", few_cells)
        ids.append(service.submit(**asked).json()["id"])
        service.jobs.keeper.look()
        assert _wait(service.jobs.keeper) == [0]
        service.jobs.keeper.look()
    small, large = (service.ask("GET", f"/v1/jobs/{job}").json()["result"]["sha256"] for job in ids)
    assert small == large
