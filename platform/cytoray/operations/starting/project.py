"""Make a project folder: cytoray.yaml, a commented file for each stage, .gitignore and README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray.config import check_location
from cytoray.drafts import replace_file
from cytoray.errors import ConfigError
from cytoray.operations.starting.templates import render
from cytoray.runs import NAME as NAME  # what a project may be called
from cytoray.stages.config import stage_configs

IGNORED = """\
# what cytoray writes beside the configuration
store/
mlflow.db
artifacts/
journal/
report/
keys.json
"""


@dataclass(frozen=True)
class Project:
    """The values that a project's files are filled with.

    Attributes:
        name: Name of its corpus and model.
        store: Root of all data: s3://bucket/prefix or a folder.
        tracking_uri: MLflow.
        data: Files of cells, or a prefix that ends in '/'.
        label_key: Column of obs with the cell types.
    """

    name: str
    store: str
    tracking_uri: str
    data: str
    label_key: str


def make_project(folder: Path, project: Project) -> list[Path]:
    """Write the files of a project into a new or empty folder, and return their paths.

    Raises ConfigError for a folder that has anything in it, or for a location that cannot be one; nothing is written
    then.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty.", remedy="Name a new folder; nothing in it is overwritten.")
    for option, location in (("--store", project.store), ("--data", project.data)):
        try:
            check_location(location)
        except ValueError as error:
            raise ConfigError(f"{option} {location}: {error}.", remedy="Write s3://bucket/prefix or a path.") from error
    texts = {"cytoray.yaml": _defaults(project), ".gitignore": IGNORED, "README.md": _readme(project)}
    kinds = stage_configs()
    for kind, values in _values(project).items():
        texts[f"{kind}.yaml"] = render(kinds[kind], {"kind": kind, **values}, about=_ABOUT[kind])
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    return [folder / name for name in texts]


_PIPELINE = ("ingest", "pretrain", "finetune", "evaluate", "promote")
_ABOUT = {
    "ingest": "Ingest cells into a committed, checked corpus: cytoray ingest --config ingest.yaml",
    "pretrain": "Pretrain a model on the corpus: cytoray pretrain --config pretrain.yaml; "
    "`cytoray train plan --config pretrain.yaml` estimates its memory, time and cost.",
    "finetune": "Fine-tune the pretrained model on labelled cells: cytoray finetune --config finetune.yaml",
    "evaluate": "Score the model on held-out cells beside simple methods: cytoray evaluate --config evaluate.yaml",
    "promote": "Register the model and move the alias champion to it: cytoray promote --config promote.yaml",
    "serve": "Serve the champion: cytoray serve --config serve.yaml",
    "pipeline": "All stages up to the promoted model, in one: cytoray pipeline run pipeline.yaml; run again, it does "
    "what is missing or has changed.",
}


def _values(project: Project) -> dict[str, dict[str, Any]]:
    """Return the keys that are set in the file of each stage."""
    tracking: Mapping[str, Any] = {"uri": project.tracking_uri, "experiment": project.name, "journal_folder": "journal"}
    run = {"store": project.store, "corpus": project.name, "tracking": tracking}
    model = {"store": project.store, "tracking": tracking}
    return {
        "ingest": {"store": project.store, "corpus": project.name, "sources": [{"uri": project.data}]},
        "pretrain": {
            **run,
            "run": f"{project.name}-pretrain",
            "train": {"num_steps": 10_000, "cells_per_step": 256, "checkpoint_every": 500},
            "optimizer": {"learning_rate": 1e-4, "warmup_steps": 500},
            "model": {"width": 512, "num_heads": 8, "feedforward_width": 512, "num_layers": 12},
            "workers": {"num_workers": 2, "use_gpu": False},
        },
        "finetune": {
            **run,
            "run": f"{project.name}-finetune",
            "initial": f"run:{project.name}-pretrain",
            "label_key": project.label_key,
            "train": {"num_steps": 2_000, "cells_per_step": 64, "checkpoint_every": 200},
            "workers": {"num_workers": 2, "use_gpu": False},
        },
        "evaluate": {
            **model,
            "model": f"run:{project.name}-finetune",
            "data": {"uri": project.data.rstrip("/"), "rows": "held_out"},
            "label_key": project.label_key,
            "baseline_corpus": project.name,
        },
        "promote": {**model, "model": f"run:{project.name}-finetune", "name": project.name},
        "serve": {"model_uri": f"models:/{project.name}@champion", "tracking": tracking},
        "pipeline": {
            "name": project.name,
            "store": project.store,
            "stages": [{"name": stage, "config": f"{stage}.yaml"} for stage in _PIPELINE],
        },
    }


def _defaults(project: Project) -> str:
    return (
        "# Defaults of --store and --uri for every command in this folder; stages have their own keys.\n"
        f"store: {project.store}\n"
        f"tracking_uri: {project.tracking_uri}\n"
        f"# model: models:/{project.name}@champion  # of `cytoray assess`, if none is named\n"
    )


def _readme(project: Project) -> str:
    return f"""# {project.name}

Cells from `{project.data}`, everything else in `{project.store}`, runs and models in `{project.tracking_uri}`.

```bash
cytoray config check {" ".join(f"{kind}.yaml" for kind in _ABOUT)}
cytoray data validate {project.data}
cytoray ingest   --config ingest.yaml
cytoray train plan --config pretrain.yaml
cytoray pretrain --config pretrain.yaml
cytoray finetune --config finetune.yaml
cytoray promote  --config promote.yaml
cytoray serve    --config serve.yaml
```

`cytoray pipeline run pipeline.yaml` does the same in one command, up to the promoted model.

Each stage that is done is found again when its command is repeated. `cytoray runs ls` and `cytoray models ls` show what
there is, `cytoray reproduce models:/{project.name}@champion` rebuilds a model from its sources.
"""


def check_name(name: str) -> str:
    """Return the name; ConfigError if it cannot be that of a corpus and model."""
    if re.fullmatch(NAME, name) is None:
        raise ConfigError(
            f"{name!r} is not a name.", remedy="Use letters, digits, '.', '_' and '-'; give another one with --name."
        )
    return name
