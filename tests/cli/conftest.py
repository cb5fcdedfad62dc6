"""What the tests of the command line share: a small file of cells, and the command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cytoray.corpus.synthetic import SynthConfig, synthesise

Run = Callable[..., subprocess.CompletedProcess[str]]
CYTORAY = "from cytoray.cli import main; main()"


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files of cells."""
    folder = tmp_path_factory.mktemp("cells")
    synthesise(folder, SynthConfig(num_cells=300, num_genes=2_000, mean_genes=300, num_files=2))
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """Run ``cytoray`` in an empty folder, with Ray unable to start unless another RAY_TMPDIR is given."""
    folder = tmp_path / "here"
    folder.mkdir()
    # Ray cannot start below this folder: its sockets would have longer paths than a socket may have.
    no_ray = tmp_path / (100 * "x")
    (no_ray / "ray").mkdir(parents=True)
    # As any `ray start` on the machine leaves it; what is started without RAY_ADDRESS must not join that.
    (no_ray / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")

    def run(*arguments: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CYTORAY_"))}
        environment |= {"RAY_TMPDIR": str(no_ray), **variables}
        words = [sys.executable, "-c", CYTORAY, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, timeout=240)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
