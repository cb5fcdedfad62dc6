"""The queue of jobs: how many run, when a process counts as lost, and when a job is given up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cytoray.serving.jobs import keeper as module
from cytoray.serving.jobs.alive import describe_process, is_alive, this_host, this_process
from cytoray.serving.jobs.config import JobsConfig, RunnerSettings
from cytoray.serving.jobs.files import Attempt, Beat, JobEnd, JobFiles, JobFolder, JobSpec, new_id
from cytoray.serving.jobs.keeper import Keeper, runner_environment
from cytoray.serving.jobs.messages import JobInput
from cytoray.tasks.messages import ModelInfo


class Recorded:
    """A process that is one in name only: tests end it and write its signs of life."""

    def __init__(self, settings: RunnerSettings) -> None:
        self.settings, self.runs = settings, True

    def is_running(self) -> bool:
        return self.runs

    def kill(self) -> None:
        self.runs = False


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(str(tmp_path / "jobs"))


def _keeper(files: JobFiles, **config: int) -> tuple[Keeper, list[Recorded]]:
    started: list[Recorded] = []

    def start(settings: RunnerSettings) -> Recorded:
        started.append(Recorded(settings))
        return started[-1]

    return Keeper(files, JobsConfig(folder=files.root, **config), cache_folder="", start=start), started


def _submit(files: JobFiles) -> JobFolder:
    spec = JobSpec(
        id=new_id("j"), owner="", created=time.time(), task="embed", input=JobInput(uri="/cells"), format="csv",
        parameters={}, model=ModelInfo(name="m", version="1", digest="d"), uri="/cells", name=None,
    )  # fmt: skip
    files.submit(spec)
    return files.job(spec.id)


def _claim(folder: JobFolder, *, host: str, process: str, done: int = 0) -> None:
    number = folder.num_attempts() + 1
    assert folder.claim(number, Attempt(done=done, host=host, process=process, nonce="n"))


def test_only_so_many_jobs_run_at_a_time(files: JobFiles) -> None:
    jobs = [_submit(files) for _ in range(4)]
    keeper, started = _keeper(files, max_running=2)
    keeper.look()
    keeper.look()
    assert [worker.settings.job for worker in started] == [job.id for job in jobs[:2]]
    assert keeper.figures.snapshot()["queued"] == 2
    jobs[0].finish(JobEnd(state="succeeded", ended=time.time()))
    started[0].runs = False
    keeper.look()
    keeper.look()
    assert [worker.settings.job for worker in started] == [job.id for job in jobs[:3]]
    assert files.queue() == [job.id for job in jobs[1:]]
    assert keeper.figures.snapshot()["succeeded"] == 1
    keeper.close()
    assert not any(worker.runs for worker in started)
    keeper.look()  # one that was under way when the service ended
    assert len(started) == 3
    other, again = _keeper(files, max_running=3)
    other.look()
    assert [worker.settings.attempt for worker in again] == [2, 2, 1]


def test_two_keepers_do_not_start_a_job_twice(files: JobFiles) -> None:
    job = _submit(files)
    parent = describe_process(os.getppid())
    assert parent is not None
    _claim(job, host=this_host(), process=parent)  # a replica on this machine, whose process has not begun yet
    keeper, started = _keeper(files)
    keeper.look()
    job.write_beat(Beat(attempt=1, host=this_host(), process=parent, started=0.0))
    keeper.look()
    assert not started
    job.write_beat(Beat(attempt=1, host=this_host(), process="1:0", started=0.0))  # it has ended
    keeper.look()
    assert [worker.settings.attempt for worker in started] == [2]


def test_a_process_elsewhere_is_lost_when_its_signs_of_life_end(
    files: JobFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _submit(files)
    _claim(job, host="elsewhere", process="7:7")
    job.write_beat(Beat(attempt=1, host="elsewhere", process="8:8", started=0.0))
    keeper, started = _keeper(files)
    keeper.look()
    keeper.look()
    assert not started
    monkeypatch.setattr(module, "LOST_S", 0.0)
    keeper.look()
    assert [worker.settings.attempt for worker in started] == [2]


def test_a_job_that_always_dies_is_given_up_but_not_one_that_comes_on(files: JobFiles) -> None:
    job, comes_on = _submit(files), _submit(files)
    keeper, started = _keeper(files, max_running=2)
    for attempt in range(1, 6):
        keeper.look()
        for worker in started:
            worker.runs = False
        beat = Beat(attempt=attempt, host=this_host(), process="1:0", started=0.0, done=attempt)
        comes_on.write_beat(beat)
    keeper.look()
    end = job.end()
    assert end is not None
    assert (end.state, end.problem.code if end.problem else None) == ("failed", "job_lost")
    assert "ended 3 times" in str(end.problem)
    assert comes_on.end() is None
    assert comes_on.num_attempts() >= 5


def test_a_process_is_known_by_its_start(files: JobFiles) -> None:
    assert is_alive(this_process())
    assert not is_alive(f"{os.getpid()}:1")


def test_a_process_gets_no_settings_of_the_ray_worker_that_starts_it() -> None:
    given = {"PATH": "p", "RAY_JOB_ID": "1", "RAY_ADDRESS": "a:1", "RAY_AUTH_TOKEN": "t", "RAY_TMPDIR": "/r"}
    alone = runner_environment(given, on_cluster=False)
    assert alone.keys() & given.keys() == {"PATH", "RAY_AUTH_TOKEN", "RAY_TMPDIR"}
    assert runner_environment(given, on_cluster=True)["RAY_ADDRESS"] == "a:1"
