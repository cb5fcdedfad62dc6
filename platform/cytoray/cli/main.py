"""The command line: each command is a thin call into the library; errors are one paragraph and exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial

import typer
from typer.exceptions import TyperException
from typer.main import get_group

from cytoray.cli.common import DEFAULTS_FILE, EXIT_CODES, print_error, report_mistake
from cytoray.cli.lazy import Entry, LazyGroup
from cytoray.errors import CytorayError
from cytoray.tasks import task_offline, task_stages
from cytoray.tasks.spec import Lazy


def _in(module: str, name: str, help_text: str) -> Entry:
    """An entry that is called ``name`` in a module of this package."""
    return Entry(help_text, Lazy[typer.Typer | Callable[..., None]](f"cytoray.cli.{module}", name).load)


def _stage(name: str, help_text: str) -> Callable[..., None]:
    from cytoray.cli.stages import stage_command

    return stage_command(name, help_text)


def _offline(kind: str, help_text: str) -> Callable[..., None]:
    from cytoray.cli.offline import offline_command

    return offline_command(kind, help_text)


_STAGES = {
    "ingest": "Ingest files of cells into a committed corpus.",
    **{kind: stage.help for kind, stage in task_stages().items()},
    "promote": "Register a run's bundle in MLflow and move an alias to it.",
}
_OFFLINE = {kind: task.offline.help for kind, task in task_offline().items() if task.offline is not None}
_SINGLE = {  # functions in modules of the same name
    "integrate": (
        "Integrate the batches of a file without cell types, or embed its cells by an integration that was kept."
    ),
    "genes": "Write the gene embeddings of a model, or print the genes nearest to one.",
    "perturb": (
        "Predict what perturbations do: effect per gene with interval, confidence and reason, and predicted cells."
    ),
    "doctor": "Check versions, store, MLflow, Ray's token, ports, disk, memory and processors, each with a remedy.",
    "serve": (
        "Serve a model on this machine (or the cluster of RAY_ADDRESS) until Ctrl-C or SIGTERM, answering what is "
        "asked."
    ),
    "reproduce": "Rebuild a model from its lineage (sources, corpus, runs) in a new place, and compare every digest.",
    "init": "Make a project folder: a commented YAML file for each stage, cytoray.yaml, .gitignore and README.md.",
    "query": "Ask a running service about all cells of a file.",
    "version": "Print the version of cytoray and the revision of its code.",
}
_GROUPS = {  # module and text
    "data": ("corpora", "Corpora: check files, ingest, inspect, verify, export."),
    "train": ("train", "Training runs: estimate the cost of a run, resume a stopped one."),
    "models": ("models", "Models: registered versions; import and export of scGPT's layout."),
    "runs": ("runs", "Training runs: list, show, compare."),
    "pipeline": ("pipeline", "All stages by one file: from cells to a served model."),
    "keys": ("keys", "API keys of the service."),
    "assess": ("assess", "Assess a task on your own cells, beside the simple method."),
    "perturbations": ("perturb", "Perturbations: fit a model of a screen; `cytoray perturb` uses it."),
    "proteins": ("proteins", "Proteins: predict them from RNA; joint embeddings of CITE-seq."),
    "reference": ("reference", "References: map new cells among labelled ones."),
    "networks": ("networks", "Gene networks: which factors regulate which genes."),
    "jobs": (
        "jobs",
        "Stages as jobs on a cluster: submit, follow, stop, continue. A command that waits for a job ends with its "
        "exit code.",
    ),
    "config": ("config", "Check, show and compare configuration files."),
    "tracking": ("tracking", "The run journals and MLflow."),
}
_QUICKSTART = "Run all stages on real cells, from ingest to a served cell-type model, in a few minutes."
_COMMANDS = {
    "quickstart": _in("quickstart", "quickstart", _QUICKSTART),
    **{name: Entry(text, partial(_stage, name, text)) for name, text in _STAGES.items()},
    **{kind: Entry(text, partial(_offline, kind, text)) for kind, text in _OFFLINE.items()},
    **{name: _in(name, name, text) for name, text in _SINGLE.items()},
    **{name: _in(module, "app", text) for name, (module, text) in _GROUPS.items()},
}


class _Commands(LazyGroup):
    """All commands."""

    entries = _COMMANDS


app = typer.Typer(
    name="cytoray",
    cls=_Commands,
    help=f"Single-cell foundation models: from a bucket of count matrices to a served answer.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """All options belong to commands."""


def command_tree() -> LazyGroup:
    """Return the group of all commands, each of them imported."""
    group = get_group(app)
    assert isinstance(group, LazyGroup)
    return group.load_all()


def main() -> None:
    """Run the command line; a user's mistake prints a paragraph on stderr (JSON on stdout with --json), exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cytoray").setLevel(logging.INFO)
    as_json = "--json" in sys.argv[1:]
    try:
        if DEFAULTS_FILE.is_file():
            from cytoray.cli.defaults import load_defaults

            load_defaults()
        sys.exit(app(standalone_mode=not as_json))
    except CytorayError as error:
        report_mistake(error, as_json=as_json)
        sys.exit(error.exit_code)
    except TyperException as error:  # with --json only: a wrong option is printed in the same form as other errors
        print_error(type(error).__name__, error.format_message(), remedy="See --help.")
        sys.exit(error.exit_code)
