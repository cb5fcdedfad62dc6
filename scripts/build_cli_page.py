"""Write docs/cli.md from the command tree: python scripts/build_cli_page.py. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cytoray.cli.common import EXIT_CODES
from cytoray.cli.main import command_tree

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Command line

Every command. `python scripts/build_cli_page.py` writes this page from the command tree; a test compares both.

- `--json` prints one JSON object on stdout. An error is then `{"error": {"kind", "message", "remedy", "details"}}`,
  also on stdout; without it, an error is one paragraph on stderr. Progress, warnings and logs go to stderr in any case.
- Options override the environment, which overrides `cytoray.yaml` in the working folder (`store`, `tracking_uri`,
  `model`). A stage's YAML file has its own keys for these, and none is taken from the environment;
  `cytoray config show --origin` prints where each value comes from.
- Nothing heavy is imported, and Ray is not started, before a command needs it; what cannot work is reported first.
- `cytoray --install-completion` installs completion for the shell in use (bash, zsh, fish, PowerShell).

| exit code | meaning |
|---:|---|
"""


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, in the order of the help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def exit_codes() -> Iterator[str]:
    """Yield the rows of the table of exit codes."""
    for code, meaning in re.findall(r"(\d+) ([^;]+?)(?=[;.]\s|[;.]$)", EXIT_CODES.removeprefix("Exit codes: ")):
        yield f"| {code} | {meaning.strip()} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or callable(value) or value in ([], (), False, ""):
        return ""
    return f"`{_cell(', '.join(map(str, value)) if isinstance(value, list | tuple) else str(value))}`"


def _rows(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name in ("help", "install_completion", "show_completion"):
            continue
        is_argument = parameter.param_type_name == "argument"
        name = parameter.metavar or str(parameter.name).upper()
        shown = name if is_argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
        variable = f" (`{parameter.envvar}`)" if isinstance(parameter.envvar, str) else ""
        yield f"| `{shown}` | {_cell(parameter.help or '')}{variable} | {_default(parameter)} |"


def page() -> str:
    """Return the text of the page."""
    lines = [HEAD.rstrip("\n"), *exit_codes()]
    group = None
    for name, command in commands(command_tree()):
        top = name.split()[0] if " " in name else ""
        if top != group:
            group = top
            lines += ["", f"## {f'cytoray {top}' if top else 'Stages and other commands'}"]
        lines += ["", f"### cytoray {name}", ""]
        text = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
        lines += ["\n\n".join(text)]
        rows = list(_rows(command))
        lines += ["", "| | | default |", "|---|---|---|", *rows] if rows else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
