"""What a submission checks before anything reaches a cluster: settings, paths, secrets, names, size of the upload."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from cytoray.errors import ConfigError, JobError
from cytoray.operations.jobs.names import MAX_NAME, attempt_id, check_name, find_job, split_id
from cytoray.operations.jobs.records import JobRecord
from cytoray.operations.jobs.request import build_again, build_request, describe_differences, refuse_secrets
from cytoray.operations.jobs.shipping import CONFIG_NAME, check_size, environment_of, measure, packed
from cytoray.stages.config import stage_configs

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "pretrain" / "quickstart.yaml"
PLACES = [
    "store=s3://cells/store",
    "tracking.uri=http://mlflow.example:5000",
    "tracking.artifact_location=s3://cells/mlflow",
    "tracking.journal_folder=/var/lib/cytoray",
]


def test_every_stage_has_its_file_of_jobs():
    files = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    kinds = set(stage_configs()) - {"serve", "pipeline", "rollout"}
    assert {find_job(kind) for kind in kinds} == files
    with pytest.raises(JobError, match="no job"):
        find_job("serve")


def test_a_request_ships_the_settings_it_was_checked_with(tmp_path: Path):
    request = build_request(QUICKSTART, job="pretrain", overrides=[*PLACES, "train.num_steps=7"])
    assert (request.job, request.stage) == ("pretrain", "pretrain")
    file = tmp_path / "shipped.yaml"
    file.write_text(request.text)
    again = build_request(file)
    assert again.settings == request.settings
    assert again.digest == request.digest
    assert again.name == request.name
    assert request.settings["train.num_steps"] == 7
    assert request.name.startswith("pretrain-")
    assert len(request.name) <= MAX_NAME


def test_names_differ_with_the_settings():
    one, two = (build_request(QUICKSTART, overrides=[*PLACES, f"train.num_steps={n}"]) for n in (4, 5))
    assert one.name != two.name
    assert describe_differences(one.settings, two.settings) == ["train.num_steps (4, here 5)"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("store=some/folder", "store"),
        ("tracking.journal_folder=runs", "tracking.journal_folder"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri"),
    ],
)
def test_relative_paths_are_rejected_as_in_a_job(override: str, key: str, tmp_path: Path):
    before = (Path.cwd(), dict(os.environ))
    with pytest.raises(ConfigError, match="job's folder") as caught:
        build_request(QUICKSTART, overrides=[*PLACES, override])
    assert key in str(caught.value)
    assert (Path.cwd(), dict(os.environ)) == before


def test_a_relative_source_of_an_ingest_is_rejected_too():
    file = ROOT / "configs" / "corpus" / "quickstart.yaml"
    with pytest.raises(ConfigError, match=r"sources.*relative path"):
        build_request(file, overrides=["store=s3://cells/store", "sources=[{uri: here/cells.h5ad}]"])
    assert build_request(file, overrides=["store=s3://cells/store"]).job == "ingest"


def test_mistakes_of_a_configuration_are_found_before_anything_is_sent():
    with pytest.raises(ConfigError, match=r"train\.num_stepz: unknown key .*did you mean train\.num_steps"):
        build_request(QUICKSTART, overrides=[*PLACES, "train.num_stepz=4"])


def test_a_configuration_of_another_stage_is_refused():
    with pytest.raises(JobError, match="configures pretrain, not ingest"):
        build_request(QUICKSTART, job="ingest", overrides=PLACES)


def test_passwords_in_uris_are_refused_and_not_shown():
    with pytest.raises(ConfigError) as caught:
        build_request(QUICKSTART, overrides=[*PLACES, "tracking.uri=http://ann:hunter2@mlflow.example:5000"])
    assert "tracking.uri" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "OPENAI_API_KEY"]
)
def test_secrets_are_no_variables_of_a_job(name: str):
    with pytest.raises(JobError, match=name) as caught:
        refuse_secrets({name: "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_plain_variables_are_fine_and_urls_with_passwords_are_not():
    refuse_secrets(
        {"AWS_ENDPOINT_URL": "http://minio:9000", "RAY_AUTH_TOKEN_PATH": "/run/token", "OMP_NUM_THREADS": "1"}
    )
    with pytest.raises(JobError, match="AWS_ENDPOINT_URL"):
        refuse_secrets({"AWS_ENDPOINT_URL": "http://ann:hunter2@minio:9000"})


@pytest.mark.parametrize("name", ["", "UPPER", "a_b", "-a", "a-", "x" * (MAX_NAME + 1), "run-attempt-2", "a/b", "a\n"])
def test_bad_names_are_refused(name: str):
    with pytest.raises(JobError, match="not a name"):
        check_name(name)


def test_attempts_have_ids_of_their_own():
    assert [attempt_id("run", attempt) for attempt in (1, 2, 11)] == ["run", "run-attempt-2", "run-attempt-11"]
    assert split_id("run-attempt-11") == ("run", 11)
    assert split_id("run") == ("run", None)
    assert len(attempt_id("x" * MAX_NAME, 9)) <= 47  # what KubeRay allows for a RayJob


def test_exit_codes_are_those_of_the_job():
    def code(status: str, driver: int | None = None) -> int | None:
        return JobRecord("a", "a", 1, "ingest", "ingest", status, driver_code=driver).exit_code  # type: ignore[arg-type]

    assert code("succeeded", 0) == 0
    assert [code("failed", driver) for driver in (2, 75, 1, -9, 137, None)] == [2, 75, 1, 1, 1, 1]
    assert code("stopped") == 75
    assert code("running") is None


def checkout(folder: Path) -> Path:
    """A small checkout with a large history."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "pack").write_bytes(bytes(3 * 2**20))
    for number in range(6):
        (folder / f"data{number}.bin").write_bytes(bytes((number + 1) * 2**18))
    (folder / "jobs").mkdir()
    (folder / "jobs" / "pretrain.py").write_text("")
    (folder / "ignored.bin").write_bytes(bytes(2**20))
    (folder / ".gitignore").write_text("ignored.bin\n")
    return folder


def test_an_upload_that_is_too_large_names_its_largest_paths_and_git(tmp_path: Path):
    folder = checkout(tmp_path / "here")
    parcel = measure(folder, [])
    with pytest.raises(JobError) as caught:
        check_size(parcel, limit_bytes=4 * 2**20)
    assert list(caught.value.details["largest"]) == [".git/", "data5.bin", "data4.bin", "data3.bin", "data2.bin"]
    assert ".git/ 3.0 MiB" in str(caught.value)
    assert "ignored.bin" not in {str(path) for path in parcel.files}
    assert check_size(measure(folder, [".git"]), limit_bytes=6 * 2**20).num_bytes < 6 * 2**20


def test_the_measured_files_are_those_that_ray_uploads(tmp_path: Path):
    from zipfile import ZipFile

    from ray._private.runtime_env.packaging import create_package

    folder = checkout(tmp_path / "here")
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=["data1.bin"])
    with ZipFile(package) as archive:
        uploaded = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    assert {str(path): size for path, size in measure(folder, ["data1.bin"]).files.items()} == uploaded


def test_the_working_folder_holds_the_settings_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = checkout(tmp_path / "here")
    monkeypatch.chdir(folder)
    request = build_request(QUICKSTART, overrides=PLACES, environment={"CYTORAY_FEW_CELLS": "0"})
    before = sorted(folder.rglob("*"))
    with packed(request, {"working_dir": ".", "excludes": [".git"], "env_vars": {"A": "1"}}) as (entrypoint, made):
        shipped = Path(made["working_dir"])
        assert entrypoint == f"python -m jobs.pretrain --config {CONFIG_NAME}"
        assert yaml.safe_load((shipped / CONFIG_NAME).read_text())["store"] == "s3://cells/store"
        assert (shipped / "data5.bin").is_file()
        assert not (shipped / ".git").exists()
        assert made["env_vars"]["CYTORAY_FEW_CELLS"] == "0"
        assert made["env_vars"]["RAY_AUTH_MODE"] == "token"
    assert not shipped.exists()
    assert sorted(folder.rglob("*")) == before


def test_a_run_on_gpus_is_not_sent_to_the_cpu():
    for gpu, expected in (("true", None), ("false", "cpu")):
        request = build_request(QUICKSTART, overrides=[*PLACES, f"workers.use_gpu={gpu}"])
        given = {"env_vars": {"DS_ACCELERATOR": "cpu"}}
        assert environment_of(request, given).get("DS_ACCELERATOR") == expected


def test_without_jobs_the_package_itself_runs_the_stage():
    request = build_request(QUICKSTART, overrides=PLACES)
    with packed(request, {}) as (entrypoint, made):
        assert entrypoint == f"python -m cytoray.stages.job --config {CONFIG_NAME}"
        assert [path.name for path in Path(made["working_dir"]).iterdir()] == [CONFIG_NAME]


def test_a_retry_has_the_settings_of_the_job_with_changes():
    request = build_request(QUICKSTART, name="run", overrides=PLACES)
    again = build_again(request.text, name="run", overrides=["train.num_steps=3"], environment={"A": "1"})
    assert describe_differences(request.settings, again.settings) == [
        f"train.num_steps ({json.dumps(request.settings['train.num_steps'])}, here 3)"
    ]
    assert (again.name, again.environment) == ("run", {"A": "1"})
