"""Checks of the commands that the documentation shows: the real commands, targets, routes and files must have them."""

from __future__ import annotations

import glob
import itertools
import json
import re
from functools import cache
from typing import Any

from doc_blocks import ROOT

from cytoray.cli.main import command_tree
from cytoray.stages.config import load_stage_config, stage_configs

ROOMS = ("configs", "serve", "infra", "scripts", "jobs", "tests", "benchmarks", "docs", "platform")
OTHERS = {  # programs that are not ours: only the files of ours that they name are checked
    *("ray", "serve", "kubectl", "kustomize", "helm", "eksctl", "terraform", "docker", "aws", "git", "pip", "npm"),
    *("export", "cd", "mkdir", "source", "cat", "echo", "cp", "open", "mlflow", "promtool", "psql", "redis-cli"),
    *("base64", "grep", "sed", "awk", "tr", "head", "tail", "sort", "find", "tee", "xargs", "true"),
    *(
        "python3",
        "bash",
        "sh",
        "systemctl",
        "journalctl",
        "sudo",
        "umask",
        "ssh",
        "nvidia-smi",
        "jq",
        "sleep",
        "kill",
        "ls",
        "rm",
        "test",
        "watch",
    ),
}
HELP = {"--help", "--install-completion", "--show-completion"}


class NotThere(AssertionError):
    """A command, option, target, route or file that does not exist."""


def check_command(words: list[str]) -> None:
    """Check one command; raises NotThere, or what the command line itself says of its arguments."""
    check_files(words)
    match words:
        case ["cytoray", *arguments]:
            check_cytoray(arguments)
        case ["make", *targets]:
            check_targets(targets)
        case ["curl", *arguments]:
            check_request(arguments)
        case ["ray", "job", "submit", *_] if "--" in words:
            check_command(words[words.index("--") + 1 :])
        case ["python", "-m", job, *arguments] if job.startswith("jobs."):
            check_job(job.removeprefix("jobs."), arguments)
        case ["python", *_]:
            pass
        case [program, *_] if program in OTHERS or "/" in program:
            pass
        case _:
            raise NotThere(f"nothing checks {words}")


def check_files(words: list[str]) -> None:
    """Check that files of the repository that a command names are there."""
    for word in words:
        path = word.partition("=")[2] or word
        is_ours = path.startswith(tuple(f"{room}/" for room in ROOMS)) and not re.search(r"[…<>{}$]|[A-Z]{3,}", path)
        if is_ours and not glob.glob(path.partition("::")[0].rstrip(".,:;)"), root_dir=ROOT):
            raise NotThere(f"{path} is not in the repository")


def check_cytoray(words: list[str]) -> None:
    """Parse a command as the command line does; a configuration of ours must be good with its overrides."""
    command, arguments = _root(), words
    while hasattr(command, "commands"):
        if not arguments or arguments[0] not in command.commands:
            if arguments[:1] and arguments[0] in HELP:
                return
            raise NotThere(f"cytoray {' '.join(words)}: {arguments[:1]} is no command")
        command, arguments = command.commands[arguments[0]], arguments[1:]
    found: dict[str, Any] = command.make_context(" ".join(words), list(arguments)).params
    config = found.get("config")
    if config and str(config).startswith(("configs/", "serve/")):
        kind = getattr(load_stage_config(ROOT / config, overrides=found.get("overrides") or ()), "kind", None)
        if words[0] in stage_configs() and kind != words[0]:
            raise NotThere(f"cytoray {words[0]} reads no {config}, which is of kind {kind}")


def check_inline(text: str) -> None:
    """Check the path and the options of a command in a sentence, which may be shortened."""
    command: Any = _root()
    words = text.split()[1:]
    while words and hasattr(command, "commands"):
        names = words.pop(0).split("|")
        if names[0].startswith(("-", "…")) or names[0].isupper():
            return
        if unknown := [name for name in names if name not in command.commands]:
            raise NotThere(f"`{text}`: {unknown[0]} is no command")
        if len(names) > 1:
            return
        command = command.commands[names[0]]
    options = {name for one in getattr(command, "params", ()) for name in (*one.opts, *one.secondary_opts)} | HELP
    if not hasattr(command, "commands"):
        given = [re.split(r"[=|,.;)\]]", word.lstrip("["))[0] for word in words if word.lstrip("[").startswith("--")]
        if unknown := [name for name in given if name not in options]:
            raise NotThere(f"`{text}`: {unknown[0]} is no option")


@cache
def _root() -> Any:
    return command_tree()


def check_targets(words: list[str]) -> None:
    """Check that the Makefile has the targets, and reads the variables that are given."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        if not re.search(rf"^{name} \?=|\$[({{]{name}" if is_variable else rf"^{name}:", text, re.MULTILINE):
            raise NotThere(f"the Makefile has no {name}")


def check_job(stage: str, arguments: list[str]) -> None:
    """Check a job and its configuration."""
    if not stage.isupper() and not (ROOT / "jobs" / f"{stage}.py").is_file():
        raise NotThere(f"jobs/{stage}.py is missing")
    values = dict(itertools.pairwise(arguments))
    overrides = [after for word, after in itertools.pairwise(arguments) if word == "--set"]
    if values.get("--config", "").startswith("configs/"):
        load_stage_config(ROOT / values["--config"], overrides=[each for each in overrides if "…" not in each])


def check_request(words: list[str]) -> None:
    """Check that the service has the route of a ``curl`` command, and that the JSON it sends is JSON."""
    address = re.compile(r"^(https?://)?(localhost|127\.0\.0\.1)(:8000)?(?=/)")
    url = next((word for word in words if address.match(word)), None)
    if url is None:  # another service's
        return
    path = address.sub("", url).partition("?")[0]
    sent = [after for word, after in itertools.pairwise(words) if word in ("-d", "--data", "--data-binary")]
    method = next((after for word, after in itertools.pairwise(words) if word == "-X"), "POST" if sent else "GET")
    if not any(method.lower() in operations for route, operations in _routes().items() if matches(route, path)):
        raise NotThere(f"the service has no {method} {path}")
    for content in sent:
        if not content.startswith("@"):
            json.loads(content)


@cache
def _routes() -> dict[str, Any]:
    text = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    return {**json.loads(text)["paths"], "/docs": {"get": {}}, "/openapi.json": {"get": {}}, "/": {"get": {}}}


def matches(route: str, path: str) -> bool:
    """Whether ``path`` is one of the paths that ``route`` stands for: /jobs/j1 of /jobs/{job_id}."""
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)), path) is not None
