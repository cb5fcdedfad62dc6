"""Commands that run the same stage as ``jobs/NAME.py``, with a configuration file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import JsonAnyway, Overrides


def stage_command(name: str, help_text: str) -> Callable[..., None]:
    """Build the command that runs the same stage as ``jobs/NAME.py``."""

    def command(
        config: Annotated[Path, typer.Option("--config", help="YAML file of this stage.", show_default=False)],
        overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
        num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
        as_json: JsonAnyway = False,
    ) -> None:
        """Run this stage; the docstring is replaced below."""
        from cytoray.stages.job import print_result, run_stage

        print_result(run_stage(name, config, overrides=overrides, num_cpus=num_cpus))

    command.__doc__ = help_text
    return command
