"""The run card: what a training run was, what it reached and how to reproduce it. ``card_page`` writes its files."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import cytoray
from cytoray import storage

FORMAT = 1
HTML_NAME, PLOT_NAME, JSON_NAME = "card.html", "loss.png", "card.json"


@dataclass(frozen=True)
class RunCard:
    """The contents of a run card. Missing entries were not measured; nothing is filled in for them.

    ``history`` holds some steps of the run: ``step``, ``loss`` and its parts by name, and the figures of
    ``training.meter``. ``validation`` holds the errors on held-out cells at each checkpoint, ``mean_bin`` being that
    of the best constant. ``scores`` is the final table: one row per model or baseline, the model's first. ``stability``
    is how a fine-tuned model's answers to held-out cells agree after each change, see ``model.stability``.
    """

    run: str
    kind: str  # pretrain or finetune
    config_yaml: str  # resolved, with all defaults
    digests: dict[str, str]  # of the corpus manifest, the configuration, bundles and checkpoints
    code: dict[str, str]  # git revision and package versions
    hardware: tuple[dict[str, str], ...]  # one per worker
    history: list[dict[str, float]]
    validation: list[dict[str, float]]
    scores: dict[str, dict[str, float]]
    events: list[str]  # restarts, steps left out, damaged checkpoints, changed keys
    totals: dict[str, float]  # cells, tokens, seconds, steps
    reproduce: list[str]  # shell lines
    mlflow_run_id: str | None
    stability: dict[str, dict[str, float | int | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON data; numbers that are not finite become null."""
        values: dict[str, Any] = _finite(dataclasses.asdict(self))
        return {"format": FORMAT, "cytoray": cytoray.__version__, **values}


def load_card(folder: str) -> dict[str, Any] | None:
    """The JSON of the card in ``folder``; None if its page, which is written last, is missing."""
    if not storage.exists(storage.join(folder, HTML_NAME)):
        return None
    return dict(json.loads(storage.read_bytes(storage.join(folder, JSON_NAME))))


def _finite(value: Any) -> Any:
    """Return the same data with None in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
