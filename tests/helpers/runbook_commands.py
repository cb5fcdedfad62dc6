"""Checks of what runbooks name: commands of cytoray, Ray, kubectl and systemd, keys of configurations, panels."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import click
import ray.scripts.scripts
import ray.serve.scripts
from doc_commands import NotThere, check_command, check_files
from doc_keys import mistake
from guide_commands import check_cluster_command

ROOT = Path(__file__).parents[2]
UNITS = {path.name for path in (ROOT / "infra" / "single-server" / "units").iterdir()} | {"postgresql.service"}
#: Programs of which every machine has one, or that are installed where they are needed.
PLAIN = {
    "curl",
    "df",
    "dmesg",
    "du",
    "export",
    "grep",
    "source",
    "nvidia-smi",
    "py-spy",
    "readlink",
    "top",
    "umask",
    "cat",
}
CHANGES = re.compile(r"\b(restart|stop|rollback|revoke|delete|resume|drain|deploy|new|ingest|sync|rm|kill)\b")


def check_code(text: str) -> None:
    """Check what stands in backticks; raises NotThere, or what a command line itself says of its arguments."""
    words = shlex.split(text)
    words = words[1:] if words[0] == "sudo" else words
    match words:
        case ["kubectl", *_]:
            _check(check_cluster_command(words), f"nothing checks {text}")
        case ["cytoray" | "make", *_]:
            check_command(words)
        case ["ray", *arguments]:
            _check_click(ray.scripts.scripts.cli, "ray", arguments)
        case ["serve", *arguments]:
            _check_click(ray.serve.scripts.cli, "serve", arguments)
        case ["systemctl" | "journalctl" as program, *arguments]:
            _check_units(program, arguments)
        case [program, *_] if program in PLAIN:
            check_command(words) if program == "curl" else check_files(words)
        case [key] if re.fullmatch(r"\w+(\.\w+)+", key) and not key.endswith((".sh", ".yaml")):
            tree: object = None
            for name in reversed(key.split(".")):
                tree = {name: tree}
            _check(mistake(tree) is None, f"unknown key {key}")
        case _:
            _check(_stands_somewhere(text), f"{text!r} stands nowhere in infra/, platform/ or serve/")


def check_look(text: str) -> None:
    """Check that a **Look.** part changes nothing, and that the panels that it names are in a dashboard."""
    for code in re.findall(r"`([^`]+)`", text):
        changes = " " in code and CHANGES.search(code)
        _check(not changes, f"a look must not change anything: {code}")
    prose = re.sub(r"`[^`]*`|\([^)]*\)", "", text)
    for title in re.findall(r'"([A-Z][^"]*)"', prose):
        _check(title in _panels(), f"no dashboard has a panel {title!r}")


def _check(holds: object, problem: str) -> None:
    if not holds:
        raise NotThere(problem)


def _check_click(group: click.Group, name: str, arguments: list[str]) -> None:
    command: click.Command = group
    while isinstance(command, click.Group):
        _check(arguments and arguments[0] in command.commands, f"{name} {' '.join(arguments)}: unknown command")
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))


def _check_units(program: str, arguments: list[str]) -> None:
    if program == "journalctl":
        units = [after for word, after in itertools.pairwise(arguments) if word == "-u"]
    else:
        _check(arguments[0] in ("status", "restart"), f"systemctl {arguments[0]}")
        units = arguments[1:]
    _check(units, f"{program} {arguments}: no unit")
    for unit in units:
        _check((unit if "." in unit else f"{unit}.service") in UNITS, f"unknown unit {unit}")


@cache
def _panels() -> frozenset[str]:
    files = (ROOT / "infra" / "monitoring" / "grafana").glob("*.json")
    return frozenset(panel["title"] for path in files for panel in json.loads(path.read_text())["panels"])


@cache
def _stands_somewhere(text: str) -> bool:
    words = ["git", "grep", "-q", "-w", "-F", "-e", text, "--", "infra", "platform", "serve"]
    return subprocess.run(words, cwd=ROOT, check=False).returncode == 0
