"""The folder called ``platform`` must never hide the standard library's module of that name.

With an ``__init__.py`` in it and the repository root on ``sys.path``, torch, ray and mlflow fail to import, and a
submitted job hangs for ever.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Started as `python -m jobs.NAME` or `python scripts/NAME.py`, so the root or the folder itself is first on sys.path.
SCRIPT_FOLDERS = [name for name in ("jobs", "serve", "scripts", "benchmarks") if (ROOT / name).is_dir()]


@pytest.mark.parametrize("folder", ["platform", "jobs", "serve"])
def test_source_roots_are_no_packages(folder: str):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_folder_of_tests_is_called_platform():
    assert [path for path in (ROOT / "tests").rglob("platform") if path.is_dir()] == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", SCRIPT_FOLDERS)
def test_no_script_is_named_like_a_standard_module(folder: str):
    names = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & sys.stdlib_module_names == set()


def test_nothing_else_at_the_root_is_named_like_a_standard_module():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names & sys.stdlib_module_names == set()


def test_with_the_root_first_the_standard_library_wins():
    code = (
        "import os, sys\n"
        "assert os.path.abspath(sys.path[0] or '.') == os.getcwd(), sys.path\n"
        "import platform, torch, ray\n"
        "print(platform.__file__)\n"
        "print(platform.python_version())\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    file, version = finished.stdout.split()
    assert Path(file).resolve().parent == Path(sysconfig.get_path("stdlib")).resolve()
    assert version == sys.version.split()[0]


def test_a_job_starts_from_the_root():
    command = [sys.executable, "-m", "jobs.ingest", "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert "--config" in finished.stdout


def test_every_benchmark_runs_by_its_path():
    """Python puts a script's folder first: without the root there, it would not find its package."""
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if "from benchmarks" in path.read_text()]
    assert scripts
    for path in scripts:
        code = path.read_text()
        by_path = 'if __name__ == "__main__":' in code and path.name != "__main__.py"
        assert not by_path or "\nsys.path[0] = " in code.partition("\nfrom benchmarks")[0], path.name
