"""Local paths that outlive the process: not those in the folder of a submitted Ray job."""

from __future__ import annotations

import os
from pathlib import Path

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the processes of a submitted job
WORKING_DIRECTORIES = "working_dir_files"  # part of the path where Ray unpacks working directories


def job_folder() -> Path | None:
    """The folder that Ray has unpacked for the submitted job of this process; it is deleted with Ray's session.

    None outside of a job, and in one that was submitted without a working directory.
    """
    here = Path.cwd()
    return here if JOB_VARIABLE in os.environ and WORKING_DIRECTORIES in here.parts else None


def lasting_path(path: str) -> str:
    """A local path made absolute; ValueError if it lies in the folder of a submitted job."""
    absolute, lost = Path(path).expanduser().absolute(), job_folder()
    if lost is not None and absolute.is_relative_to(lost):
        raise ValueError(
            f"{path} lies in this job's folder, which Ray deletes with its session: write an absolute path that "
            "outlives the job"
        )
    return str(absolute)
