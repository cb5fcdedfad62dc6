"""Pages of docs/ run as they are written, in order, on small files with the names that they use; `make test-docs`.

What needs a bucket, a run, a file of configs/ or a service is not run here but parsed (tests/test_docs.py). What runs
is counted, so that a page cannot lose it unnoticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import Block, blocks
from doc_scene import write_files

pytestmark = [pytest.mark.docs, pytest.mark.timeout(1500)]

NEEDS = (
    "s3://",
    "run:",
    "corpus:",
    "models:/atlas",
    "models:/blood@candidate",
    "blood/3",
    "scGPT_human",
    "cells/",
    "with-reference",
    "screen.h5ad",
    "known.tsv",
    "http:",
)  # what the small files do not include
ABSENT = {"serve", "query", "quickstart", "promote", "keys", "jobs", "pipeline"}
# Page: the commands and the blocks of Python that run.
PAGES = {
    "annotation.md": (3, 1),
    "assessing.md": (6, 0),
    "embeddings.md": (3, 2),
    "integration.md": (5, 1),
    "mapping.md": (4, 0),
    "multiomic.md": (6, 1),
    "networks.md": (4, 1),
}
RUN = """
import json, os, sys, warnings
import anndata
from doc_scene import make_cells, with_proteins
from cytoray.cli import main
warnings.simplefilter("ignore")
scope = {"adata": with_proteins(make_cells(), seed=0), "other": make_cells(seed=1)}
for kind, text in json.loads(sys.argv[1]):
    print(">", text, flush=True)
    if kind == "python":
        exec(compile(text, "page", "exec"), scope)
        continue
    sys.argv = json.loads(text)
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, sys.argv
"""


def steps_of(page: str, folder: Path) -> list[tuple[str, str]]:
    """The commands and blocks of Python of a page that can be run in ``folder``, in their order."""
    found: list[tuple[str, str]] = []
    for block in (block for block in blocks() if block.file == page):
        if block.language == "python" and not any(need in block.text for need in NEEDS):
            found.append(("python", placed(block.text, folder)))
        if block.language == "bash":
            found += [("cytoray", json.dumps([placed(word, folder) for word in words])) for words in runnable(block)]
    return found


def runnable(block: Block) -> list[list[str]]:
    """The commands of a block that need nothing but files of the folder."""
    return [
        words
        for words in block.commands()
        if words[0] == "cytoray"
        and words[1] not in ABSENT
        and not any(need in word for word in words for need in NEEDS)
        and not any(word.startswith("configs/") for word in words)
    ]


def placed(text: str, folder: Path) -> str:
    """Put what the page has in /data below the folder of the test."""
    return f"{folder}/data" if text == "/data" else text.replace("/data/mlflow.db", f"{folder}/mlflow.db")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages name and, in its MLflow, a model called blood."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYTORAY_FEW_CELLS", "1000000")  # no Ray
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1] / 'helpers'}:{':'.join(sys.path)}")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_is_written(page: str, folder: Path) -> None:
    steps = steps_of(page, folder)
    kinds = [kind for kind, _ in steps]
    assert (kinds.count("cytoray"), kinds.count("python")) == PAGES[page]
    uri = f"sqlite:///{folder}/mlflow.db"
    first = ["cytoray", "models", "register", "bundle", "--name", "blood", "--uri", uri, "--alias", "champion"]
    if any("models:/blood" in text for _, text in steps):
        steps.insert(0, ("cytoray", json.dumps(first)))
    command = [sys.executable, "-c", RUN, json.dumps(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
