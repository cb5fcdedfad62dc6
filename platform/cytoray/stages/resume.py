"""Continue a run with its own configuration, or report its result without Ray if it is finished."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cytoray import storage
from cytoray.config import load_config
from cytoray.corpus.manifest import load_manifest
from cytoray.errors import CytorayError, NotFoundError, TrainingError
from cytoray.registry.opening import find_digest
from cytoray.runs import find_bundle, run_folder
from cytoray.tasks import learning_stages
from cytoray.tasks.config import FromModelConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.training.card import HTML_NAME, load_card
from cytoray.training.config import RunConfig
from cytoray.training.export import is_exported
from cytoray.training.record import RunRecord, claim_run, load_run_record
from cytoray.training.result import find_result

logger = logging.getLogger(__name__)


def load_resumed_config(store: str, run: str, *, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of ``run``, with ``a.b=c`` overrides; keys in ``allow`` may differ from the run's.

    Raises TrainingError if the run is missing, ConfigError if an override is invalid.
    """
    stored = _load(store, run)
    stored["store"] = store  # the same store may have a different path on this machine
    stored["allow_changes"] = list(allow)
    with tempfile.TemporaryDirectory(prefix="cytoray-resume-") as folder:
        file = Path(folder) / f"{run}.yaml"
        file.write_text(yaml.safe_dump(stored))
        config = load_config(learning_stages()[stored["kind"]].config.load(), file, overrides=overrides)
    assert isinstance(config, RunConfig), "a stage that learns has the configuration of a run"
    return config


def summarise_finished(config: RunConfig) -> dict[str, Any] | None:
    """Return the JSON that the job of a finished run prints; None if steps, its bundle or its card are missing.

    Starts nothing. Raises TrainingError if the run's settings differ.
    """
    if not storage.exists(storage.join(run_folder(config.store, config.run), "run.json")):
        return None
    digest = load_manifest(config.store, config.corpus).digest
    record = load_run_record(config.store, config.run)
    if isinstance(config, FromModelConfig):
        config = _with_inherited(config, record)
    claim_run(config, digest, initial_digest=_initial_digest(config, record))
    result = find_result(config, digest)
    folder = storage.join(run_folder(config.store, config.run), "card")
    card = load_card(folder)
    if result is None or not is_exported(config, result) or card is None:
        return None
    if card["totals"]["steps"] != result.checkpoint.state.step:  # the card is that of the run before it was extended
        return None
    bundle = find_bundle(config.store, config.run)
    made = {"bundle": bundle.uri, "bundle_digest": bundle.digest, "card": storage.join(folder, HTML_NAME)}
    return result.summary() | made | {key: card[kept] for key, kept in learning_stages()[config.kind].from_card.items()}


def _with_inherited(config: FromModelConfig, record: RunRecord) -> FromModelConfig:
    """Take the keys of the tokenizer that were inherited from the initial model from the run's record."""
    own = config.tokenizer.model_dump(include=config.tokenizer.model_fields_set)
    known = {key: value for key, value in record.config["tokenizer"].items() if key in TokenizerConfig.model_fields}
    return config.model_copy(update={"tokenizer": TokenizerConfig(**known | own)})


def _initial_digest(config: RunConfig, record: RunRecord) -> str:
    """Return the present digest of the model that the run started from; empty if it is not to be compared."""
    if not isinstance(config, FromModelConfig) or not record.initial_digest:
        return ""
    try:
        return find_digest(
            config.initial_uri, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
        )
    except CytorayError as error:  # the result is there, and does not need the model
        logger.warning("run %s is finished; its initial model cannot be looked up: %s", config.run, error)
        return ""


def _load(store: str, run: str) -> dict[str, Any]:
    try:
        return dict(load_run_record(store, run).config)
    except NotFoundError as error:
        root = storage.join(store, "runs")
        files = (uri.removeprefix(f"{root}/") for uri in storage.list_files(root))
        names = sorted({name.partition("/")[0] for name in files if name.endswith("/run.json")})
        raise TrainingError(
            f"Unknown run {run!r} in {store}.", remedy=f"Runs there: {', '.join(names) or 'none'}."
        ) from error
