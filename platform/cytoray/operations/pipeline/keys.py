"""Find what the result of a stage depends on: its settings, and digests of what it reads.

The code is not part of it: an upgrade trains nothing again. Local files count by size and time, objects by their ETag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import find_manifest, load_manifest
from cytoray.corpus.readers.finding import find_sources
from cytoray.errors import NotFoundError, StorageError
from cytoray.operations.pipeline.reading import CORPUS_KEYS, Stage
from cytoray.operations.pipeline.records import StageKey, StageRecord
from cytoray.registry.opening import find_digest
from cytoray.stages.config import PromoteConfig
from cytoray.stages.rollout import RolloutStageConfig
from cytoray.tracking.server import public
from cytoray.training.config import RunConfig

READERS = 8  # requests for versions of files at a time
# Where something is, in any stage; `record` is a place for assessments, but asks for something to be done.
PLACES = frozenset({"kind", "store", "tracking", "cache_folder"})
Taken = Mapping[str, StageRecord]  # by what is taken


def find_key(stage: Stage, taken: Taken) -> StageKey:
    """Return what the result of a stage depends on; ``taken`` are the records of the stages it takes something from.

    Raises CytorayError if a source or a model that no stage makes cannot be found.
    """
    sources = source_versions(stage.config) if isinstance(stage.config, IngestConfig) else {}
    inputs = {"sources": _digest(sources)} if sources else _find_inputs(stage, taken)
    return StageKey(kind=stage.kind, settings=_settings(stage), inputs=inputs, sources=sources)


def _settings(stage: Stage) -> dict[str, Any]:
    """Return the keys that are not at their defaults, without places, what is taken, and what changes no result."""
    config = stage.config
    skipped = set(PLACES | config.places) - {"record"}
    if isinstance(config, RunConfig):
        skipped |= config.free | (frozenset() if config.has_dropout else config.redrawing)
    if isinstance(config, IngestConfig):
        skipped.add("sources")
    if "corpus" in stage.takes:
        skipped |= set(CORPUS_KEYS)
    if "model" in stage.takes and stage.model_key is not None:
        skipped.add(stage.model_key)
    if isinstance(config, PromoteConfig) and ("scores" in stage.takes or "model" in stage.takes):
        skipped.add("gate.scores")
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for key in skipped:
        _remove(settings, key.split("."))
    if isinstance(config, IngestConfig):  # those of a source; which there are is an input
        own = [source.model_dump(mode="json", exclude_defaults=True) for source in config.sources]
        settings["sources"] = {one.pop("uri"): one for one in own if len(one) > 1}
    return settings | ({"retrain": "continue"} if stage.is_continued else {})


def _remove(settings: dict[str, Any], path: list[str]) -> None:
    """Remove a key, if it is there, and the mapping around it if that is then empty."""
    inner = settings.get(path[0])
    if len(path) > 1 and isinstance(inner, dict):
        _remove(inner, path[1:])
    if len(path) == 1 or inner == {}:
        settings.pop(path[0], None)


def source_versions(config: IngestConfig) -> dict[str, str]:
    """Return the version of each file that an ingest would read, by URI; only unclear files are opened."""
    manifest = find_manifest(config.store, config.corpus)
    known = {record.uri: record.identity for record in manifest.sources} if manifest else {}
    uris = sorted(source.uri for source in find_sources(config.sources, known=known).sources)
    with ThreadPoolExecutor(READERS, "versions") as pool:
        return dict(zip(uris, pool.map(data_version, uris), strict=True))


def data_version(uri: str) -> str:
    """Return the version of a file, or a digest of those of all files in a folder; ``missing`` if there is neither."""
    try:
        return storage.info(uri).version
    except NotFoundError:
        pass
    except StorageError as error:
        if not error.details.get("is_folder"):
            raise
    files = {entry.uri: entry.version for entry in storage.list_objects(uri)}
    return _digest(files) if files else "missing"


def _find_inputs(stage: Stage, taken: Taken) -> dict[str, str]:
    """Return the digests of what a stage reads, except sources of an ingest."""
    config = stage.config
    inputs = _file_inputs(config)
    for key in CORPUS_KEYS:
        if key in type(config).model_fields:
            inputs["corpus"] = _corpus_digest(config, key, taken)
    if stage.model_key is not None and getattr(config, stage.model_key) is not None:
        inputs["model"] = _model_digest(stage, taken)
    if isinstance(config, PromoteConfig):
        inputs["registry"] = public(config.tracking.uri)
        if config.gate is not None:
            inputs["scores"] = scores_digest(stage, taken)
    return inputs


def _file_inputs(config: Config) -> dict[str, str]:
    """Return the versions of the files that keys of a configuration name."""
    found: dict[str, Any] = {key: getattr(config, key) for key in getattr(config, "inputs", ())}
    data = getattr(config, "data", None)
    if data is not None and not isinstance(data, str):
        sources = data if isinstance(data, tuple) else (data,)
        found["data"] = tuple(source.uri for source in sources)
    uris = {key: (value,) if isinstance(value, str) else value for key, value in found.items() if value is not None}
    return {key: _digest({uri: data_version(uri) for uri in several}) for key, several in uris.items()}


def _corpus_digest(config: Config, key: str, taken: Taken) -> str:
    if "corpus" in taken:
        return str(taken["corpus"].result["manifest_digest"])
    return load_manifest(config.store, getattr(config, key)).digest  # type: ignore[attr-defined]


def _model_digest(stage: Stage, taken: Taken) -> str:
    config = stage.config
    if "model" in taken:
        result = taken["model"].result
        if isinstance(config, RolloutStageConfig):
            return f"version {result['version']}, {result['bundle_digest']}"
        return str(result["bundle_digest"])
    uri = getattr(config, str(stage.model_key))
    if isinstance(config, RolloutStageConfig):
        return str(uri)
    folder = getattr(config, "cache_folder", "")
    return find_digest(uri, store=getattr(config, "store", None), tracking=config.tracking, cache_folder=folder)  # type: ignore[attr-defined]


def scores_digest(stage: Stage, taken: Taken) -> str:
    """Return the digest of the scores that a gate reads; those of a run's card count as the run's bundle."""
    if "scores" in taken:
        files = taken["scores"].files
        return next(digest for uri, digest in files.items() if uri.endswith("/scores.json"))
    if "model" in taken:
        return str(taken["model"].result["bundle_digest"])
    assert isinstance(stage.config, PromoteConfig), "only a gate reads scores"
    assert stage.config.gate is not None, "only a gate reads scores"
    return data_version(stage.config.gate.scores)


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()
