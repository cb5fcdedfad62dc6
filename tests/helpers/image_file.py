"""A Dockerfile as BuildKit's own parser reads it: stages, what they copy, and problems that a build would end with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET|API_?KEY|ACCESS_KEY)\w*=", re.IGNORECASE)
MOUNT = re.compile(r"--mount=type=bind,from=(?P<stage>[^,]+),source=(?P<source>[^,]+),target=(?P<target>\S+)")


@dataclass
class Stage:
    """A stage and its commands, in order; ``name`` has build arguments filled in."""

    name: str
    parent: str
    commands: list[Any]


def parse(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Return the build arguments before the first FROM, and the stages; raises what the parser raises."""
    parser = pytest.importorskip("dockerfile", reason="the package dockerfile is not installed: make setup")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for command in parser.parse_string(text):
        if command.cmd.upper() == "FROM":
            words = [word for word in command.value if word.upper() != "AS"]
            stages.append(Stage(words[-1], words[0], []))
        elif stages:
            stages[-1].commands.append(command)
        else:
            name, _, value = command.value[0].partition("=")
            arguments[name] = value
    return arguments, stages


def fill(text: str, arguments: dict[str, str]) -> str:
    """Return a text with ``${NAME}`` replaced by build arguments; an unknown one stays."""
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), text)


def ignored(path: str, rules: list[str]) -> bool:
    """Whether a file of the build context is left out by .dockerignore; the last rule that matches decides."""
    parts, out = path.split("/"), False
    for rule in rules:
        pattern = rule.removeprefix("!").rstrip("/")
        names = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
        patterns = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        if any(
            len(name.split("/")) == len(each.split("/")) and fnmatch.fnmatch(name, each)
            for name in names
            for each in patterns
        ) or (pattern.startswith("**/") and any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)):
            out = not rule.startswith("!")
    return out


def read_rules(root: Path) -> list[str]:
    """Return the rules of the .dockerignore of a build context."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def copied(stage: Stage) -> Iterator[tuple[list[str], str]]:
    """Yield sources in the build context, and the target, of each COPY of a stage."""
    for command in stage.commands:
        if command.cmd.upper() == "COPY" and not any(flag.startswith("--from=") for flag in command.flags):
            yield list(command.value[:-1]), command.value[-1]


def problems(text: str, root: Path) -> list[str]:
    """Return what is wrong with a Dockerfile whose build context is ``root``."""
    arguments, stages = parse(text)
    rules, found, known = read_rules(root), [], {arguments.get("PYTHON_IMAGE")}
    for stage in stages:
        if fill(stage.parent, arguments) not in known:
            found.append(f"{stage.name}: unknown stage {stage.parent}")
        for sources, _ in copied(stage):
            for source in sources:
                if not list(root.glob(source)):
                    found.append(f"{stage.name}: COPY of a missing file {source}")
                elif ignored(source, rules):
                    found.append(f"{stage.name}: COPY of a file that .dockerignore leaves out: {source}")
        for command in stage.commands:
            found += [f"{stage.name}: {problem}" for problem in _command_problems(command, known)]
        known.add(stage.name)
    users = [command.value[0] for command in stages[-1].commands if command.cmd.upper() == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the image must run as a user with a number, which is not root")
    return found


def _command_problems(command: Any, known: set[str | None]) -> Iterator[str]:
    kind, line = command.cmd.upper(), command.original
    if kind == "ADD":
        yield "ADD instead of COPY"
    if kind in ("ENV", "ARG") and SECRET.search(line):
        yield f"a secret in {kind}"
    for flag in command.flags:
        mount = MOUNT.fullmatch(flag)
        stage = mount["stage"] if mount else flag.partition("--from=")[2]
        if flag.startswith("--mount") and mount is None:
            yield f"a mount that is not understood: {flag}"
        elif stage and stage not in known:
            yield f"unknown stage {stage}"
    if kind != "RUN":
        return
    for words in re.findall(r"pip (?:install|wheel)[^&|]*", line):
        if "--constraint" not in words and not ("--no-deps" in words and re.search(r"(\.whl| \.)\s*$", words)):
            yield "packages that constraints.txt does not lock"
    if "apt-get install" in line and "rm -rf /var/lib/apt/lists/*" not in line:
        yield "lists of apt left in a layer"
