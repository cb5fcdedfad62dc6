"""The reference of the command line: a page per command or group, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from markdown_parts import MARK, code, escape, heading, table

from cytoray.cli.common import EXIT_CODES
from cytoray.cli.main import app


def write(folder: Path) -> None:
    """Write ``commands/``: an index and a page per command of the first level."""
    folder.mkdir(parents=True, exist_ok=True)
    root: Any = typer.main.get_command(app)
    rows = []
    for name, command in sorted(root.commands.items()):
        (folder / f"{name}.md").write_text(MARK + "".join(_command(command, ["cytoray", name], 1)), encoding="utf-8")
        rows.append((f"[`cytoray {name}`]({name}.md)", escape(_first(command))))
    index = MARK + INDEX.format(exit_codes=EXIT_CODES) + table(("Command", "What it does"), rows)
    (folder / "index.md").write_text(index, encoding="utf-8")


def _command(command: Any, words: list[str], level: int) -> Iterator[str]:
    """Yield the sections of a command and of those below it."""
    yield heading(level, code(" ".join(words)), anchor="-".join(words))
    yield escape((command.help or "").strip()) + "\n\n"
    if hasattr(command, "commands"):
        for name, each in sorted(command.commands.items()):
            yield from _command(each, [*words, name], min(level + 1, 4))
        return
    context = command.make_context(" ".join(words), [], resilient_parsing=True)
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n\n"
    rows = [_parameter(one, context) for one in command.params if not getattr(one, "hidden", False)]
    if rows:
        yield table(("Argument or option", "Value", "Default", "Description"), rows)


def _parameter(one: Any, context: Any) -> tuple[str, str, str, str]:
    """Describe an argument or option: names, value, default, help."""
    is_option = one.param_type_name == "option"
    names = ", ".join(map(code, [*one.opts, *one.secondary_opts])) if is_option else code(one.name.upper())
    kind = "" if getattr(one, "is_flag", False) else _value(one, context)
    empty = one.default in (None, False, [], ()) or callable(one.default)
    default = "required" if one.required else "" if empty else code(one.default)
    return names, kind, default, escape(one.help or "")


def _value(one: Any, context: Any) -> str:
    """Name the type of a value, with its range or choices."""
    choices = getattr(one.type_descriptor, "choices", None)
    kind = ", ".join(code(choice) for choice in choices) if choices else str(one.display_type(context))
    return kind + (", repeatable" if one.multiple or one.nargs == -1 else "")


def _first(command: Any) -> str:
    return str((command.help or "").strip().partition("\n")[0])


INDEX = """# Command line

{exit_codes}

Every command that reads has `--json`. `--store`, `--uri` and `--model` have
[defaults](../../quickstart.md#defaults-json-exit-codes) that a file or the environment sets.
`cytoray --install-completion` installs the completion of your shell.

"""
