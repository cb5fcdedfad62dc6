"""The whole command tree: JSON for results, its page, completion, and nothing heavy before it is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cytoray.cli.main import command_tree

ROOT = Path(__file__).parents[2]
CYTORAY = Path(sys.executable).with_name("cytoray")
WITHOUT_JSON = {
    "quickstart": "a demonstration for people; each of its stages is a command with --json",
    "serve": "runs until it is stopped, and prints no result",
}
HEAVY = {"ray", "torch", "mlflow", "deepspeed", "scanpy", "sklearn", "matplotlib"}
# What the names and texts of commands need none of: configurations, and the commands themselves.
FOR_COMMANDS = {"pydantic", "yaml", "numpy", "pandas", "cytoray.config", "cytoray.tracking", "cytoray.storage"}
MODULES = (
    "import sys\nfrom cytoray.cli import main\nsys.argv[0] = 'cytoray'\n"
    "try:\n    main()\nexcept SystemExit as ended:\n    code = ended.code or 0\n"
    "print(code, len(sys.modules), *sorted({heavy} & sys.modules.keys()), file=sys.stderr)\n"
)


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return found


ROOT_GROUP = command_tree()
TREE = commands(ROOT_GROUP)


def test_every_command_that_prints_a_result_has_json():
    without = {
        name for name, command in TREE.items() if "--json" not in [opt for each in command.params for opt in each.opts]
    }
    assert without == set(WITHOUT_JSON)


def test_the_texts_that_help_shows_before_it_imports_a_command_are_those_of_the_command():
    shown = {name: entry.help for name, entry in ROOT_GROUP.entries.items()}
    loaded = {name: command.help for name, command in ROOT_GROUP.commands.items()}
    assert shown.keys() == loaded.keys()
    assert {name for name in shown if " ".join(loaded[name].split("\n\n")[0].split()) != shown[name]} == set()


def test_every_command_and_option_has_a_help_text():
    missing = [name for name, command in TREE.items() if not command.help]
    missing += [
        f"{name} {each.name}"
        for name, command in TREE.items()
        for each in command.params
        if not getattr(each, "help", 1)
    ]
    assert missing == []


def _page() -> Any:
    path = ROOT / "scripts" / "build_cli_page.py"
    spec = importlib.util.spec_from_file_location("build_cli_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_command_tree():
    page = _page()
    there = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert there == page.page(), "run: python scripts/build_cli_page.py"
    assert all(f"\n### cytoray {name}\n" in there for name in TREE)
    codes = [line.split("|")[1].strip() for line in page.exit_codes()]
    assert {"0", "1", "2", "75"} <= set(codes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cytoray ", {name.split()[0] for name in TREE}),
        ("cytoray rep", {"reproduce"}),
        ("cytoray config ", {"check", "show", "diff", "schema"}),
        ("cytoray config show --or", {"--origin"}),
        ("cytoray data export x --format ", {"h5ad", "zarr", "annbatch"}),
    ],
)
def test_bash_completes(words: str, expected: set[str]):
    """As bash asks: by the variables that its completion function sets."""
    variables = {"_CYTORAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([CYTORAY], capture_output=True, text=True, env=os.environ | variables, timeout=60)
    assert set(done.stdout.split()) == expected, done.stderr


def test_bash_takes_the_completion_script():
    variables = {**os.environ, "_CYTORAY_COMPLETE": "source_bash"}
    script = subprocess.run([CYTORAY], capture_output=True, text=True, env=variables, timeout=60).stdout
    ask = 'COMP_WORDS=(cytoray mode); COMP_CWORD=1; _cytoray_completion "$1"; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}", "bash", str(CYTORAY)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["models"]


@pytest.mark.parametrize(
    ("words", "most_modules"),
    [
        (["config", "schema", "pretrain"], 900),
        (["config", "show", "--origin", str(ROOT / "configs/pretrain/quickstart.yaml")], 900),
        (["runs", "ls", "--store", "nowhere", "--json"], 900),
        (["reproduce", "run:x", "--store", "nowhere", "--dry-run", "--json"], 1000),
        (["init", "project", "--json"], 900),
    ],
    ids=lambda words: "-".join(words[:2]) if isinstance(words, list) else "",
)
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str], most_modules: int, tmp_path: Path):
    """By what is imported, which decides the time, and not by a clock: the machine may be busy."""
    code = MODULES.replace("{heavy}", str(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True
    )
    exit_code, num_modules, *heavy = done.stderr.splitlines()[-1].split()
    assert heavy == []
    assert int(num_modules) < most_modules
    assert exit_code == ("2" if "nowhere" in words else "0"), done.stdout
    if "nowhere" in words:
        assert json.loads(done.stdout)["error"]["remedy"]


@pytest.mark.parametrize(
    ("words", "variables", "most_modules"),
    [
        (["--help"], {}, 400),
        ([], {"_CYTORAY_COMPLETE": "complete_bash", "COMP_WORDS": "cytoray rep", "COMP_CWORD": "1"}, 350),
    ],
    ids=["help", "completion"],
)
def test_help_and_completion_import_no_command(words: list[str], variables: dict[str, str], most_modules: int):
    code = MODULES.replace(
        "{heavy}", f"({HEAVY} | {FOR_COMMANDS} | {{one for one in sys.modules if 'cytoray.cli.' in one}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ | variables, check=True
    )
    _, num_modules, *found = done.stderr.splitlines()[-1].split()
    own = {"cytoray.cli.main", "cytoray.cli.common", "cytoray.cli.lazy"}
    assert set(found) - ({"pydantic"} if variables else set()) == own  # Typer itself parses with pydantic
    assert int(num_modules) < most_modules
    assert "reproduce" in done.stdout
