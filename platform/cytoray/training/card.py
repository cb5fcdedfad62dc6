"""The run card: what a training run was, what it reached and how to reproduce it. ``card_page`` writes its files."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import cytoray
from cytoray import storage

FORMAT = 1
HTML_NAME, PLOT_NAME, JSON_NAME = "card.html", "loss.png", "card.json"


@dataclass(frozen=True)
class RunCard:
    """Everything the card of a run says. What is missing was not measured; nothing is made up for it.

    ``history`` holds some steps of the run: ``step``, ``loss`` and its parts by name, and the figures of
    ``training.meter``. ``validation`` holds the errors on held-out cells at each checkpoint, ``mean_bin`` being that
    of the best constant. ``scores`` is the final table: a row a model or baseline, the model's first.
    """

    run: str
    kind: str  # pretrain or finetune
    config_yaml: str  # as it was resolved
    digests: dict[str, str]  # of the corpus manifest, the configuration, bundles and checkpoints
    code: dict[str, str]  # git revision, and versions of what computes
    hardware: tuple[dict[str, str], ...]  # one a worker
    history: list[dict[str, float]]
    validation: list[dict[str, float]]
    scores: dict[str, dict[str, float]]
    events: list[str]  # restarts, steps left out, damaged checkpoints, changed keys
    totals: dict[str, float]  # cells, tokens, seconds, steps
    reproduce: list[str]  # shell lines
    mlflow_run_id: str | None

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON data; numbers that are not finite are null."""
        values: dict[str, Any] = _finite(dataclasses.asdict(self))
        return {"format": FORMAT, "cytoray": cytoray.__version__, **values}


def load_card(folder: str) -> dict[str, Any] | None:
    """The JSON of the card in ``folder``; None if its page, which is written last, is missing."""
    if not storage.exists(storage.join(folder, HTML_NAME)):
        return None
    return dict(json.loads(storage.read_bytes(storage.join(folder, JSON_NAME))))


def _finite(value: Any) -> Any:
    """The same data with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
