"""docs/tutorial.md, run as it is written, with fewer steps of training; its service answers the last command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import httpx
import pytest
from doc_blocks import Block, blocks
from doc_scene import TYPES, write_files

pytestmark = [pytest.mark.docs, pytest.mark.ray, pytest.mark.timeout(2400)]

CYTORAY = Path(sys.executable).with_name("cytoray")
REDUCED = ["--steps", "20"]  # of `cytoray quickstart`


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user who has started no Ray, in a folder with the files that the page names."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "MPLBACKEND": "agg", "PYTHONPATH": ":".join(path for path in sys.path if path)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(language: str) -> list[Block]:
    return [block for block in blocks(language) if block.file == "tutorial.md"]


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500, check=False)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])


@contextmanager
def served(words: list[str], environment: dict[str, str], url: str) -> Iterator[None]:
    """Keep a command running that serves ``url``."""
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 600
            while not is_ready(url):
                assert process.poll() is None, process.communicate()[1][-3000:]
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=200)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def test_the_tutorial_runs_as_it_is_written(tmp_path: Path, environment: dict[str, str]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    *commands, query = [words[1:] for block in page("bash") for words in block.commands()]
    assert [words[0] for words in commands] == ["data", "quickstart", "annotate"]
    assert query[0] == "query"
    for words in commands:
        own = [*REDUCED, "--port", str(port)] if words[0] == "quickstart" else []
        run([str(CYTORAY), *words, *own], environment)
    (python,) = page("python")
    run([sys.executable, "-W", "ignore", "-c", python.text], environment)
    (serve,) = [words for block in page("text") for words in block.commands()]
    with served([str(CYTORAY), *serve[1:]], environment, url):
        run([str(CYTORAY), *[word.replace("http://127.0.0.1:8000", url) for word in query]], environment)
    for file in ("check/report.html", "cytoray-quickstart/report/umap.png", "umap.png", "answers/00000-new.h5ad"):
        assert (tmp_path / file).is_file(), file
    scores = json.loads((tmp_path / "cytoray-quickstart" / "report" / "scores.json").read_text())
    assert scores["cytoray"]["accuracy"] > 0.9
    asked, annotated = (anndata.read_h5ad(tmp_path / name) for name in ("asked.h5ad", "annotated.h5ad"))
    assert list(asked.obs["cytoray_label"]) == list(annotated.obs["cytoray_label"])
    assert set(asked.obs["cytoray_label"]) <= set(TYPES)
