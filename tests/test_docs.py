"""Every block and inline command of the README and of docs/ is checked; the commands about corpora are run."""

from __future__ import annotations

import ast
import builtins
import glob
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from doc_blocks import FILES, ROOT, Block, blocks, inline, name_of, prose
from doc_commands import NotThere, check_command, check_files, check_inline, check_targets
from doc_keys import is_foreign, mistake
from typer.exceptions import TyperException
from typer.testing import CliRunner

from cytoray.cli.defaults import Defaults
from cytoray.cli.main import app
from cytoray.errors import CytorayError

RUN_ELSEWHERE = "serving-routes.md"  # a script for bash: tests/serving/test_routes_page.py
LANGUAGES = {"bash", "python", "yaml", "text", "json", "hcl", "promql", "toml", "ini", "dockerfile", "makefile"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
VARIABLE = re.compile(r"\bCYTORAY_[A-Z_]+\b")


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in blocks()} <= LANGUAGES
    assert len(blocks("bash")) > 5


@pytest.mark.parametrize("block", [block for block in blocks("bash") if block.file != RUN_ELSEWHERE], ids=str)
def test_every_command_is_one(block: Block):
    for words in block.commands():
        check_command(words)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_targets_and_files_in_sentences_are_there(path: Path):
    for text in inline(path):
        if text.startswith("cytoray "):
            check_inline(text)
        elif text.startswith("make "):
            check_targets(text.split()[1:])
        elif text.startswith(("python -m jobs.", "ray job submit ")):
            check_command(text.split())
        check_files(text.split())


@pytest.mark.parametrize(
    "command",
    [
        "cytoray ingests --config configs/corpus/quickstart.yaml",
        "cytoray pretrain --config configs/corpus/quickstart.yaml",
        "cytoray data gc --stores s3://bucket",
        "make tests",
        "make soak SOAK_SECONDS=3",
        "python -m jobs.pretraining --config configs/pretrain/quickstart.yaml",
        "ray job submit --runtime-env configs/runtime.yaml -- python -m jobs.pretrain",
        "curl -s localhost:8000/v1/annotation -d '{}'",
        "kubectl apply -f infra/no-such-file.yaml",
        "frobnicate --all",
    ],
)
def test_a_mistake_in_a_command_is_found(command: str):
    (words,) = Block("x.md", 0, "bash", command).commands()
    with pytest.raises((NotThere, TyperException, CytorayError)):
        check_command(words)


@pytest.mark.parametrize(
    "text", ["cytoray data frob", "cytoray assess annotation --datas x", "cytoray models ls|attack"]
)
def test_a_mistake_in_a_sentence_is_found(text: str):
    with pytest.raises(NotThere):
        check_inline(text)


def test_the_shell_is_split_into_commands():
    text = "A=1 cytoray version && make demo | cat > x  # remark\ncat <<'EOF'\nno command\nEOF\nexport B=$(ls | wc)\n"
    words = [["cytoray", "version"], ["make", "demo"], ["cat"], ["cat"], ["ls"], ["wc"], ["export", "B=SUBSTITUTED"]]
    assert list(Block("x.md", 0, "bash", text).commands()) == words


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_parses_and_imports_what_is_there(block: Block):
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), str(block), "exec"), {})


GIVEN = {"adata", "other", "proteins", "names", "bundle", "controls", "genes"}  # what a reader of a page has


@pytest.mark.parametrize("file", sorted({block.file for block in blocks("python")}))
def test_python_defines_or_imports_what_it_uses(file: str):
    known = GIVEN | set(dir(builtins))
    for block in (block for block in blocks("python") if block.file == file):
        used, defined = names_of(block.text)
        known |= defined
        assert not used - known, str(block)


def names_of(text: str) -> tuple[set[str], set[str]]:
    """The names that a program reads, and those that it assigns, imports or defines."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.alias):
            defined.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return used, defined


def test_a_name_that_nothing_defines_is_found():
    used, defined = names_of("import a.b as c\nd = c.e(f)\n")
    assert (used, defined) == ({"c", "f"}, {"c", "d"})


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_keys_of_configurations_are_there(block: Block):
    for tree in yaml.safe_load_all(block.text):
        assert is_foreign(tree) or mistake(tree) is None, mistake(tree)


def test_an_unknown_key_is_found():
    assert mistake({"tokenizer": {"values": "soft", "deep": 1}}) == "tokenizer.deep"
    assert mistake({"jobs": {"folder": "x"}}) is None
    assert is_foreign({"apiVersion": "ray.io/v1", "kind": "RayJob"})


@cache
def sources() -> str:
    """Everything in which a variable of the environment may be read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kept = [name for name in listed if name.endswith((".py", ".sh", ".yaml", ".yml", "Makefile", "Dockerfile", ".tf"))]
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in kept if (ROOT / name).is_file())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_variables_of_the_environment_are_read_somewhere(path: Path):
    for name in set(VARIABLE.findall(path.read_text(encoding="utf-8"))):
        assert name in sources(), name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_links_lead_to_pages_and_headings(path: Path):
    for link in (one or other for one, other in LINK.findall(prose(path))):
        target, _, anchor = link.partition("#")
        if re.match(r"^[a-z]+:", link) or target.startswith("reference/"):  # `make docs` checks those of the reference
            continue
        other = (path.parent / target).resolve() if target else path
        assert other.exists(), link
        assert not anchor or anchor in anchors(other), link


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


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
