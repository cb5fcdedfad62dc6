"""Runbooks and docs/on-call.md: every command, key, panel and word in them exists, and looking comes before doing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from doc_blocks import BLOCK, INLINE, prose
from doc_commands import NotThere
from runbook_commands import check_code, check_look
from typer.exceptions import TyperException

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
ON_CALL = ROOT / "docs" / "on-call.md"
LINES = [
    line for _, _, text in BLOCK.findall(ON_CALL.read_text(encoding="utf-8")) for line in text.splitlines()
]  # fmt: skip
PATHS = re.compile(r"[~/][\w./~-]*|tests/\S+|infra/\S+|[A-Z_]+|ip|[a-z]+-head-svc|severity: \w+|ray-token|PORT")


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/on-call.md exports."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("CYTORAY_CLUSTER", "http://127.0.0.1:8265")


def sections(path: Path) -> dict[str, str]:
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("path", [*RUNBOOKS, ON_CALL], ids=lambda path: path.stem)
def test_what_is_named_exists(path: Path) -> None:
    for code in INLINE.findall(prose(path)):
        if not PATHS.fullmatch(code):
            check_code(code)


@pytest.mark.parametrize("line", LINES)
def test_commands_to_get_in_exist(line: str) -> None:
    for command in re.findall(r"\$\(([^()]*)\)", line):
        check_code(command)
    words = shlex.split(re.sub(r"\$\([^()]*\)", "X", line).partition(" > ")[0], comments=True)
    check_code(shlex.join(words))


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_looking_comes_before_doing(path: Path) -> None:
    for name, text in sections(path).items():
        parts = re.findall(r"^\*\*(\w+(?: by)?)\.\*\* ", text, re.MULTILINE)
        assert parts == ["Means", "Look", "Do", "Tested by"], name
        check_look(re.search(r"\*\*Look\.\*\* (.*)", text)[1])


@pytest.mark.parametrize(
    "code",
    [
        "cytoray jobs halt NAME",
        "cytoray data show NAME --stor URI",
        "cytoray train resume RUN",
        "ray statuses",
        "ray job log NAME",
        "serve state",
        "kubectl -n cytoray get pods -l cytoray/role=heads",
        "kubectl -n cytoray rollout restart deployment/mlflw",
        "kubectl -n cytoray port-forward service/shared-head-svc 8000:8000",
        "sudo systemctl restart cytoray-mlfow",
        "journalctl -u cytoray-rays --since -1h",
        "curl -s localhost:8000/v1/modelz",
        "train.checkpoint_evry",
        "overloadd",
        "frobnicate --all",
    ],
)
def test_a_mistake_in_a_runbook_is_found(code: str) -> None:
    with pytest.raises((NotThere, TyperException, click.ClickException, AssertionError)):
        check_code(code)


@pytest.mark.parametrize("look", ['Panel "Losses".', "`cytoray jobs stop NAME` and see."])
def test_a_mistake_in_a_look_is_found(look: str) -> None:
    with pytest.raises(NotThere):
        check_look(look)
