"""The folder of a perturbation model: ``arrays.safetensors``, and ``model.json`` with the digest of the arrays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from scipy import sparse

from cytoray.drafts import draft_folder
from cytoray.errors import ConflictError, DigestError, ModelError, NotFoundError
from cytoray.evaluation.perturbation.blending import Blend
from cytoray.evaluation.perturbation.covariates import Points
from cytoray.evaluation.perturbation.effects import Effects
from cytoray.evaluation.perturbation.operator import Fitted, Setting
from cytoray.evaluation.perturbation.views import View
from cytoray.tasks.packing import kinds_of, pack, unpack
from cytoray.tasks.perturbation.fitting import Pairs, TargetModel
from cytoray.tasks.perturbation.members import GeneratorUse
from cytoray.tasks.perturbation.predicting import PerturbationPredictor

ARRAYS, MANIFEST, FORMAT = "arrays.safetensors", "model.json", "cytoray-perturbations-1"
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class StoredView:
    """A view as arrays."""

    name: str
    genes: tuple[str, ...]
    data: Array
    indices: Array
    indptr: Array
    num_features: int
    feature_names: tuple[str, ...]


def save_model(model: PerturbationPredictor, folder: Path) -> str:
    """Write a model as ``folder``, whole or not at all, and return its digest; ConflictError if it exists."""
    if folder.exists():
        raise ConflictError(f"{folder} already exists.", remedy="Choose another folder.")
    stored = {name: _stored(view) for name, view in model.targets.views.items()}
    arrays: dict[str, Array] = {}
    packed = pack(replace(model.targets, views=stored), arrays, "model")  # type: ignore[arg-type]
    manifest = {
        "format": FORMAT,
        "genes": list(model.genes),
        "control": model.control,
        "perturbation_key": model.perturbation_key,
        "facts": dict(model.facts),
        "covariates": list(model.covariates),
        "points": pack(model.points, arrays, "points"),
        "model": packed,
    }
    data = safetensors.numpy.save(arrays)
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
    with draft_folder(folder) as draft:
        (draft / ARRAYS).write_bytes(data)
        (draft / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load_model(folder: Path) -> PerturbationPredictor:
    """Load a model; NotFoundError without one, DigestError for changed arrays, ModelError for another format."""
    if not (folder / MANIFEST).is_file() or not (folder / ARRAYS).is_file():
        raise NotFoundError(
            f"{folder} is not a perturbation model: it has no {MANIFEST} or no {ARRAYS}.", remedy="Check the path."
        )
    return read_model((folder / MANIFEST).read_bytes(), (folder / ARRAYS).read_bytes(), name=str(folder))


def read_model(listing: bytes, data: bytes, *, name: str) -> PerturbationPredictor:
    """Read a model from its two files, which messages call ``name``; raises as ``load_model``."""
    try:
        manifest = json.loads(listing)
    except ValueError as error:
        raise ModelError(f"{MANIFEST} of {name} is not JSON.", remedy="Copy the model again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(
            f"{name} is not a perturbation model of format {FORMAT}.", remedy="Fit it again with this version."
        )
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise DigestError(f"{ARRAYS} of {name} was changed or damaged.", remedy="Copy the model again.")
    try:
        kinds = kinds_of(TargetModel, Effects, Fitted, Setting, Pairs, StoredView, Blend, GeneratorUse, Points)
        arrays = safetensors.numpy.load(data)
        found: TargetModel = unpack(manifest["model"], arrays, kinds)
        views = {key: _view(view) for key, view in found.views.items()}  # type: ignore[arg-type]
        return PerturbationPredictor(
            tuple(manifest["genes"]),
            replace(found, views=views),
            manifest["control"],
            manifest["perturbation_key"],
            manifest["facts"],
            covariates=tuple(manifest.get("covariates", ())),
            points=unpack(manifest.get("points"), arrays, kinds),
        )
    except (KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{name} does not fit together ({error!r}).", remedy="Fit it again.") from error


def _stored(view: View) -> StoredView:
    matrix = view.features.tocsr().astype(np.float32)
    names = view.feature_names
    parts = matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64)
    return StoredView(view.name, view.genes, *parts, int(matrix.shape[1]), names)


def _view(stored: StoredView) -> View:
    shape = (len(stored.genes), stored.num_features)
    matrix = sparse.csr_matrix((stored.data.astype(np.float64), stored.indices, stored.indptr), shape)
    return View(stored.name, stored.genes, matrix, stored.feature_names)
