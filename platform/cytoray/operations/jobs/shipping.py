"""What a job takes along: the working folder and packages of a runtime environment, measured before the upload."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cytoray import provenance
from cytoray.errors import JobError
from cytoray.operations.jobs.request import JobRequest, refuse_secrets

UPLOAD_LIMIT_BYTES = 100 * 2**20  # what a Ray dashboard accepts in one request (ray#55877)
RUNTIME_ENV = Path("configs/runtime_env.yaml")
CONFIG_NAME = "cytoray-job.yaml"  # in the working folder of the job
NUM_SHOWN = 5
_IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class Parcel:
    """One folder to upload: its files by path relative to it, with their sizes in bytes."""

    folder: Path
    files: dict[Path, int]

    @property
    def num_bytes(self) -> int:
        """Size of the upload; Ray packs without compression."""
        return sum(self.files.values())

    def largest(self) -> list[tuple[str, int]]:
        """Return the largest files and folders at the top of the parcel, with their sizes."""
        sizes: Counter[str] = Counter()
        for path, num_bytes in self.files.items():
            sizes[path.parts[0] + ("/" if len(path.parts) > 1 else "")] += num_bytes
        return sizes.most_common(NUM_SHOWN)


def load_runtime_env(path: Path | None) -> dict[str, Any]:
    """Read the runtime environment of jobs; the default file may be missing, and then nothing but the settings ships.

    Raises JobError if it is not a mapping of keys or contains secrets.
    """
    if path is None and not RUNTIME_ENV.is_file():
        return {}
    file = RUNTIME_ENV if path is None else path
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise JobError(f"{file}: cannot read this runtime environment ({error}).", remedy="Check the file.") from error
    if not isinstance(found, dict):
        raise JobError(f"{file}: not a mapping of keys.", remedy="Write key: value lines, such as working_dir: .")
    refuse_secrets({str(name): str(value) for name, value in (found.get("env_vars") or {}).items()})
    return found


def measure(folder: Path, excludes: list[str]) -> Parcel:
    """List the files of a folder that Ray would upload: without ``excludes`` and what ignore files name.

    ``.git`` counts unless it is excluded.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    files: dict[Path, int] = {}

    def add(path: Path) -> None:
        """Note one file."""
        if path.is_file():
            files[path.relative_to(folder)] = path.stat().st_size

    logging.getLogger("ray").setLevel(logging.WARNING)  # it names every ignore file
    folder = folder.absolute()
    skip: list[Callable[[Path], bool]] = [_get_excludes(folder, excludes)]
    _dir_travel(folder, skip, add, include_gitignore=True)
    return Parcel(folder, files)


def check_size(parcel: Parcel, *, limit_bytes: int = UPLOAD_LIMIT_BYTES) -> Parcel:
    """Return the parcel; JobError that names the largest paths if a dashboard would refuse it."""
    if parcel.num_bytes <= limit_bytes:
        return parcel
    shown = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in parcel.largest())
    raise JobError(
        f"{parcel.folder}: {parcel.num_bytes / 2**20:,.1f} MiB to upload, and a Ray dashboard accepts "
        f"{limit_bytes / 2**20:,.0f} MiB. Largest: {shown}.",
        remedy="Add paths to `excludes` of the runtime environment or to .rayignore; keep data in the store.",
        largest=dict(parcel.largest()),
        num_bytes=parcel.num_bytes,
    )


@contextlib.contextmanager
def packed(request: JobRequest, runtime_env: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entrypoint and the runtime environment of a job, whose working folder holds its configuration.

    Everything is measured first; JobError if it is too large. The folder is a copy, deleted afterwards.
    """
    excludes = [str(pattern) for pattern in runtime_env.get("excludes") or ()]
    working = runtime_env.get("working_dir")
    if isinstance(working, str) and "://" in working:
        raise JobError(
            f"working_dir {working}: the settings of a job cannot be added to a package that is uploaded already.",
            remedy="Name a local folder, or leave working_dir out if the image holds the code.",
        )
    modules = [str(module) for module in runtime_env.get("py_modules") or ()]
    parcel = check_size(measure(_existing(working), excludes)) if working else None
    for module in modules:
        if "://" not in module and Path(module).is_dir():
            check_size(measure(Path(module), excludes))
    with tempfile.TemporaryDirectory(prefix="cytoray-job-") as name:
        folder = Path(name)
        if parcel is not None:
            _copy(parcel, folder)
        (folder / CONFIG_NAME).write_text(request.text, encoding="utf-8")
        made = {**runtime_env, "working_dir": str(folder)}
        if modules:
            made["py_modules"] = [module if "://" in module else str(Path(module).absolute()) for module in modules]
        made["env_vars"] = environment_of(request, runtime_env)
        yield entrypoint_of(request, folder), made


def environment_of(request: JobRequest, runtime_env: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a job: those of the runtime environment, then its own.

    ``DS_ACCELERATOR: cpu``, which suits machines without GPUs, is left out for a run on GPUs.
    """
    given = {str(name): str(value) for name, value in (runtime_env.get("env_vars") or {}).items()}
    if request.settings.get("workers.use_gpu") and given.get("DS_ACCELERATOR") == "cpu":
        del given["DS_ACCELERATOR"]
    return {"RAY_AUTH_MODE": "token", provenance.VARIABLE: provenance.git_revision(), **given, **request.environment}


def entrypoint_of(request: JobRequest, folder: Path) -> str:
    """Return the command of a job: its program, its file of jobs/ if that ships, or the module of the package."""
    module = f"jobs.{request.job}" if (folder / "jobs" / f"{request.job}.py").is_file() else "cytoray.stages.job"
    return f"python -m {request.program or module} --config {CONFIG_NAME}"


def _existing(folder: str) -> Path:
    """Return a local folder; JobError if it is missing."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise JobError(f"working_dir {folder}: not a folder.", remedy="Run in the folder that holds it.")
    return path


def _copy(parcel: Parcel, folder: Path) -> None:
    """Copy the files of a parcel, without those that tell Ray what to leave out: that is done."""
    for path in parcel.files:
        if path.name in _IGNORE_FILES:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(parcel.folder / path, folder / path)
