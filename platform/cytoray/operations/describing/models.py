"""The facts of a model, from its bundle's files and from what its lineage leads to; nothing is loaded as a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest
from cytoray.errors import CytorayError, ModelError
from cytoray.model.bundle_files import DIGESTS
from cytoray.operations.reproducing.lineage import Places, Trace, TracedModel, TracedRun, find_model, trace_model
from cytoray.registry.artifacts import RegisteredVersion, fetch_file
from cytoray.registry.models import find_version
from cytoray.registry.pinning import REGISTERED, RUN
from cytoray.runs import find_bundle
from cytoray.training.card import load_card

WEIGHTS = "model.safetensors"
MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model, without loading it.

    Attributes:
        traced: Its URI, digest and lineage.
        files: SHA-256 of each file of its bundle.
        config: The shape of the network.
        preprocessing: The tokenizer and the limits of inference.
        labels: Names of its classes.
        genes: The tokens of its vocabulary.
        shapes: Shapes of its weights by name; empty if the weights cannot be read in part.
        registered: The registered version, if it is one.
        runs: The runs that lead to it, the first one first; empty if they cannot be found.
        unknown: Why they cannot.
    """

    traced: TracedModel
    files: dict[str, str]
    config: dict[str, Any]
    preprocessing: dict[str, Any]
    labels: tuple[str, ...]
    genes: tuple[str, ...] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    registered: RegisteredVersion | None = None
    runs: tuple[TracedRun, ...] = ()
    unknown: str = ""

    @cached_property
    def num_parameters(self) -> int | None:
        """Number of weights; None if it is not known."""
        if not self.shapes:
            return None
        total = 0
        for shape in self.shapes.values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total

    @property
    def run(self) -> TracedRun | None:
        """The run that made it."""
        return self.runs[-1] if self.runs else None

    @property
    def corpus(self) -> CorpusManifest | None:
        """The corpus version that this run was trained on."""
        return self.run.corpus if self.run is not None else None

    @cached_property
    def card(self) -> dict[str, Any]:
        """The card of this run; empty without one."""
        if self.run is None:
            return {}
        with contextlib.suppress(CytorayError, ValueError):
            return load_card(storage.join(self.run.store, "runs", self.run.name, "card")) or {}
        return {}


def describe_model(uri: str, *, places: Places) -> ModelFacts:
    """Read the facts of the model that ``uri`` names; raises RegistryError, TrainingError or NotFoundError for none."""
    traced = find_model(uri, places)
    registered = None
    if uri.startswith(REGISTERED):
        assert places.tracking is not None, "it was found with it"
        registered = find_version(traced.uri, tracking=places.tracking)
    read = _reader(traced, registered, places)
    listing = json.loads(read(DIGESTS))["files"]
    vocabulary = json.loads(read("vocab.json"))
    trace, unknown = _trace(traced.uri, places)
    return ModelFacts(
        traced=traced,
        files=dict(listing),
        config=json.loads(read("config.json")),
        preprocessing=json.loads(read("preprocessing.json")),
        labels=tuple(json.loads(read("labels.json"))),
        genes=tuple(vocabulary),
        shapes=_shapes(_place_of(traced, registered, places)),
        registered=registered,
        runs=trace.runs if trace is not None else (),
        unknown=unknown,
    )


def _trace(uri: str, places: Places) -> tuple[Trace | None, str]:
    """Trace a model as far as that is possible; the reason if it is not."""
    try:
        return trace_model(uri, places=places), ""
    except CytorayError as error:
        return None, error.problem


def _place_of(traced: TracedModel, registered: RegisteredVersion | None, places: Places) -> str | None:
    """Return where the files of a bundle lie, if they can be read there directly."""
    if registered is not None:
        source = registered.source_uri
        scheme = urlsplit(source).scheme
        return source if scheme in ("", "file", "s3") else None
    if traced.uri.startswith(RUN):
        assert places.store is not None, "it was found with it"
        return find_bundle(places.store, traced.uri.removeprefix(RUN)).uri
    return traced.uri


def _reader(traced: TracedModel, registered: RegisteredVersion | None, places: Places) -> Callable[[str], bytes]:
    """Return a function that reads a small file of the bundle, directly or through MLflow."""
    place = _place_of(traced, registered, places)
    if place is not None:
        return lambda name: storage.read_bytes(storage.join(place, name))
    assert registered is not None, "others have a place"
    assert places.tracking is not None, "it was found with it"
    tracking_uri = places.tracking.uri
    return lambda name: fetch_file(registered, name, tracking_uri=tracking_uri)


def _shapes(place: str | None) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the weights from the head of their file."""
    if place is None:
        return {}
    uri = storage.join(place, WEIGHTS)
    length = int.from_bytes(storage.read_bytes(uri, start=0, end=8), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise ModelError(f"{uri} is not a safetensors file.", remedy="Copy the bundle again from its source.")
    header = json.loads(storage.read_bytes(uri, start=8, end=8 + length))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
