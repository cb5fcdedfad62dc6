"""Every block of the README and of docs/ is checked: commands parse with their files, those about corpora are run."""

from __future__ import annotations

import ast
import glob
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer
import yaml
from typer.testing import CliRunner

from cytoray.cli.common import Defaults
from cytoray.cli.main import app
from cytoray.stages.config import load_stage_config, stage_configs

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "python", "yaml", "text", "json"}
RUN_ELSEWHERE = "serving-routes.md"  # a script for bash: tests/serving/test_routes_page.py


@dataclass(frozen=True)
class Block:
    """One fenced block of a file."""

    file: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}-{self.number}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(language: str | None = None) -> list[Block]:
    found = [
        Block(path.name, number, *match)
        for path in FILES
        for number, match in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
    ]
    return [block for block in found if language in (None, block.language)]


def parse_cytoray(words: list[str]) -> dict[str, Any]:
    """The arguments of a ``cytoray`` command, which must be one, with files of ours that are there and good."""
    command, arguments = typer.main.get_command(app), words
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    found: dict[str, Any] = command.make_context(" ".join(words), list(arguments)).params
    if found.get("config"):
        config = load_stage_config(ROOT / found["config"], overrides=found.get("overrides") or ())
        assert words[0] in (config.kind, "data", "train")
    return found


def check_request(words: list[str]) -> None:
    """Check that the service has the route of a ``curl`` command, and that the JSON it sends is JSON."""
    url = next(word for word in words if word.startswith("localhost:8000/"))
    path = url.removeprefix("localhost:8000").partition("?")[0]
    sent = [after for word, after in itertools.pairwise(words) if word in ("-d", "--data-binary")]
    method = next((after for word, after in itertools.pairwise(words) if word == "-X"), "POST" if sent else "GET")
    routes = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    assert any(method.lower() in routes[route] for route in routes if matches(route, path)), (method, path)
    for content in sent:
        assert content.startswith("@cells.") or json.loads(content)


def matches(route: str, path: str) -> bool:
    """Whether ``path`` is one of the paths that ``route`` stands for: /jobs/j1 of /jobs/{job_id}."""
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)), path) is not None


def check_command(words: list[str]) -> None:
    match words:
        case ["cytoray", *arguments]:
            parse_cytoray(arguments)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["curl", *arguments]:
            check_request(arguments)
        case ["ray", "job", "submit", "--runtime-env", file, "--", "python", "-m", job, "--config", config, *_]:
            assert (ROOT / file).is_file()
            stage = job.removeprefix("jobs.")
            assert stage in stage_configs()
            assert (ROOT / "jobs" / f"{stage}.py").is_file()
            load_stage_config(ROOT / config)
        case ["python", "-m", job, "--config", config]:
            assert (ROOT / f"{job.replace('.', '/')}.py").is_file()
            load_stage_config(ROOT / config)
        case ["ray", "start", "--head"] | ["export", *_]:
            pass
        case _:
            pytest.fail(f"nothing checks {words}")


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in blocks()} <= LANGUAGES
    assert len(blocks("bash")) > 5


@pytest.mark.parametrize("block", [block for block in blocks("bash") if block.file != RUN_ELSEWHERE], ids=str)
def test_every_command_is_one(block: Block):
    for words in block.commands():
        check_command(words)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_parses_and_imports_what_is_there(block: Block):
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), str(block), "exec"), {})


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.file == "quickstart.md"], ids=str)
def test_defaults_are_those_that_are_read(block: Block):
    assert yaml.safe_load(block.text).keys() == Defaults.model_fields.keys()


def run(words: list[str]) -> str:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, (words, done.output)
    return done.output


RUN_ALL = """
import io, json, sys
from contextlib import redirect_stdout
from cytoray.cli import main
outputs = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["cytoray", *words]
    with redirect_stdout(io.StringIO()) as output:
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, words
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


def run_outside(commands: list[list[str]]) -> list[str]:
    """Run commands in one other process: Ray, if tests have started it in this one, cannot reach the store."""
    command = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, (commands, done.stdout, done.stderr)
    outputs: list[str] = json.loads(done.stdout)
    return outputs


def test_the_corpus_commands_run_as_written(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against an S3 server; only the bucket is another, and two prefixes are filled with the first command's cells."""
    monkeypatch.chdir(tmp_path)
    block, python = (next(b for b in blocks(kind) if b.file == "corpora.md") for kind in ("bash", "python"))
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    first, *rest = ([word.replace("s3://bucket", s3_uri) for word in words[1:]] for words in block.commands())
    assert first[1] == "synth"
    run_outside([first])
    files = sorted((tmp_path / "synthetic").glob("*.h5ad"))
    for number, file in enumerate(files):
        folder = "raw" if number < len(files) // 2 else "more"
        boto3.client("s3").upload_file(str(file), bucket, f"{prefix}/{folder}/{file.name}")
    outputs = {"synth": ""}
    for words, output in zip(rest, run_outside(rest), strict=True):
        outputs.setdefault(words[1], output)
    assert outputs.keys() >= {"synth", "validate", "ingest", "ls", "show", "diff", "verify", "export", "gc"}
    assert "blood@2" in outputs["ls"]
    assert (tmp_path / "blood.h5ad").is_file()
    assert (tmp_path / "report" / "report.html").is_file()
    scope: dict[str, Any] = {}
    exec(compile(python.text.replace("s3://bucket", s3_uri), str(python), "exec"), scope)
    assert scope["batch"].gene_ids.shape[0] == 64


def test_the_check_of_all_configurations_is_good_as_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    checks = [words for block in blocks("bash") for words in block.commands() if words[1:3] == ["config", "check"]]
    files = sorted(file for words in checks for file in glob.glob(words[3]))
    assert len(files) > 10
    assert run(["config", "check", *files]).count(": good") == len(files)
