"""The configuration with which a run goes on: that of its first start, with keys that may change set anew."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cytoray import storage
from cytoray.config import load_config
from cytoray.errors import NotFoundError, TrainingError
from cytoray.training.config import FinetuneConfig, PretrainConfig
from cytoray.training.record import load_run_record

KINDS: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def load_resumed_config(
    store: str, run: str, *, overrides: Sequence[str] = (), allow: Sequence[str] = ()
) -> PretrainConfig | FinetuneConfig:
    """The configuration of ``run`` in ``store``, with ``a.b=c`` overrides; keys in ``allow`` may differ from the run's.

    Raises TrainingError if there is no such run, ConfigError if an override does not fit.
    """
    stored = _load(store, run)
    stored["store"] = store  # where it lies may have another name from here
    stored["allow_changes"] = list(allow)
    with tempfile.TemporaryDirectory(prefix="cytoray-resume-") as folder:
        file = Path(folder) / f"{run}.yaml"
        file.write_text(yaml.safe_dump(stored))
        return load_config(KINDS[stored["kind"]], file, overrides=overrides)


def _load(store: str, run: str) -> dict[str, Any]:
    try:
        return dict(load_run_record(store, run).config)
    except NotFoundError as error:
        root = storage.join(store, "runs")
        files = (uri.partition("/runs/")[2] for uri in storage.list_files(root))
        names = sorted({name.partition("/")[0] for name in files if name.endswith("/run.json")})
        raise TrainingError(
            f"There is no run {run!r} in {store}.", remedy=f"Runs there: {', '.join(names) or 'none'}."
        ) from error
