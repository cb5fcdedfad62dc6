"""A group whose commands are imported when one of them is used: help and completion need only their names and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


@dataclass(frozen=True)
class Entry:
    """A command, or a group of commands, that is not imported yet."""

    help: str  # the same text as in the module, so that the help of all commands imports none of them
    load: Callable[[], typer.Typer | Callable[..., None]]  # imports the Typer of a group, or the function of a command


class LazyGroup(TyperGroup):
    """A group of ``entries``: each is a name with its help text until a command line names it."""

    entries: ClassVar[Mapping[str, Entry]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=entry.help) for name, entry in self.entries.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and remaining words of a command line; the command is imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else self.load(name), rest

    def load(self, name: str) -> Any:
        """Import the command or group called ``name``."""
        found = self.entries[name].load()
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
        else:
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            command = get_command(single)
        command.name = name
        return command

    def load_all(self) -> LazyGroup:
        """Import every command, for what reads the whole tree; returns this group."""
        self.commands = {name: self.load(name) for name in self.entries}
        return self
