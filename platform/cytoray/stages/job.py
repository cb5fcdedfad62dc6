"""Run a stage from files in jobs/ and from commands: read the configuration, run the stage, print JSON.

``python -m cytoray.stages.job --config FILE`` runs the stage that the file names, where jobs/ is not at hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cytoray.cluster import available
from cytoray.config import Config, load_config
from cytoray.errors import CytorayError
from cytoray.stages.config import load_stage_config, stage_configs
from cytoray.stages.find import find_stage
from cytoray.training.config import RunConfig


def run_job(stage: str | None, *, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run a stage on the configuration named on the command line; returns the exit code.

    Without ``stage`` it is the one that the file names as its ``kind``.
    A CytorayError becomes one paragraph on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, metavar="FILE", type=Path, help="YAML file of this stage")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one key; repeatable")
    parser.add_argument("--num-cpus", type=int, default=2, help="logical CPUs when Ray is started here (default 2)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("cytoray").setLevel(logging.INFO)
    try:
        result = run_stage(stage, arguments.config, overrides=arguments.set, num_cpus=arguments.num_cpus)
    except CytorayError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print_result(result)
    return 0


def run_stage(stage: str | None, path: Path, *, overrides: Sequence[str], num_cpus: int) -> dict[str, Any]:
    """Load the configuration and run the stage, or that of the file's ``kind``; returns its result as JSON data."""
    if stage is None:
        config: Any = load_stage_config(path, overrides=overrides)
        return run_configured(config.kind, config, num_cpus=num_cpus)
    return run_configured(stage, load_config(stage_configs()[stage], path, overrides=overrides), num_cpus=num_cpus)


def run_configured(stage: str, config: Config, *, num_cpus: int) -> dict[str, Any]:
    """Run a stage and return its result as JSON data; Ray starts only if the stage needs it.

    The result of a finished training run is returned without loading the training code.
    """
    if isinstance(config, RunConfig):
        from cytoray.stages.resume import summarise_finished  # imports torch, which takes seconds

        if (found := summarise_finished(config)) is not None:
            return found
    with available(num_cpus=num_cpus):
        return find_stage(stage)(config)  # imported only with a valid configuration: that takes seconds


def print_result(result: dict[str, Any]) -> None:
    """Print a stage's result on stdout."""
    print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    sys.exit(run_job(None, description=__doc__))
