"""The folder of a protein model: ``arrays.safetensors`` and ``model.json``, which has the digest of the arrays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from cytoray.drafts import draft_folder
from cytoray.errors import ConflictError, DigestError, ModelError, NotFoundError
from cytoray.evaluation.voters import GeneFeatures
from cytoray.tasks.multiomic.blending import Blend
from cytoray.tasks.multiomic.members import Member
from cytoray.tasks.multiomic.protein_predictor import ProteinPredictor
from cytoray.tasks.multiomic.views import Views

ARRAYS, MANIFEST, FORMAT = "arrays.safetensors", "model.json", "cytoray-proteins-1"
_VIEWS = ("expression", "ranks", "panel")
Arrays = dict[str, npt.NDArray[Any]]
Model = TypeVar("Model", bound=ProteinPredictor)


def save_model(model: ProteinPredictor, folder: Path) -> str:
    """Write a model as ``folder``, whole or not at all, and return its digest; ConflictError if it exists."""
    if folder.exists():
        raise ConflictError(f"{folder} already exists.", remedy="Choose another folder.")
    arrays: Arrays = {"confidence": model.confidence, "half_width": model.half_width}
    arrays["blend/intercept"] = model.blend.intercept
    for name in _VIEWS:
        features: GeneFeatures = getattr(model.views, name)
        parts: dict[str, npt.NDArray[Any] | None] = {
            "genes": features.genes,
            "centre": features.centre,
            "scale": features.scale,
            "axes": features.axes,
        }
        arrays |= {f"views/{name}/{part}": array for part, array in parts.items() if array is not None}
    members = {}
    for name, member in model.members.items():
        members[name] = {"kind": member.kind, "views": list(member.views), "option": dict(member.option)}
        arrays |= {f"members/{name}/{part}": array for part, array in member.arrays.items()}
        arrays[f"blend/weights/{name}"] = model.blend.weights[name]
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    manifest = {
        "format": FORMAT,
        "sha256": hashlib.sha256(data).hexdigest(),
        "genes": list(model.genes),
        "proteins": list(model.proteins),
        "members": members,
        "facts": dict(model.facts),
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
    with draft_folder(folder) as draft:
        (draft / ARRAYS).write_bytes(data)
        (draft / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load_model(folder: Path, kind: type[Model]) -> Model:
    """Load a model; NotFoundError without one, DigestError for changed arrays, ModelError for another format."""
    if not (folder / MANIFEST).is_file() or not (folder / ARRAYS).is_file():
        raise NotFoundError(
            f"{folder} is not a protein model: it has no {MANIFEST} or no {ARRAYS}.", remedy="Check the path."
        )
    return read_model((folder / MANIFEST).read_bytes(), (folder / ARRAYS).read_bytes(), kind, name=str(folder))


def read_model(listing: bytes, data: bytes, kind: type[Model], *, name: str) -> Model:
    """Read a model from its two files, which messages call ``name``; raises as ``load_model``."""
    try:
        manifest = json.loads(listing)
    except ValueError as error:
        raise ModelError(f"{MANIFEST} of {name} is not JSON.", remedy="Copy the model again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{name} is not a protein model of format {FORMAT}.", remedy="Fit it again with this version.")
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise DigestError(f"{ARRAYS} of {name} was changed or damaged.", remedy="Copy the model again.")
    try:
        return _build(kind, manifest, safetensors.numpy.load(data))
    except (KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{name} does not fit together ({error!r}).", remedy="Fit it again.") from error


def _build(kind: type[Model], manifest: dict[str, Any], arrays: Arrays) -> Model:
    features = {
        name: GeneFeatures("ranks" if name == "ranks" else "expression", **_below(arrays, f"views/{name}/"))
        for name in _VIEWS
    }
    members = {
        name: Member(each["kind"], tuple(each["views"]), each["option"], _below(arrays, f"members/{name}/"))
        for name, each in manifest["members"].items()
    }
    genes = tuple(manifest["genes"])
    return kind(
        genes,
        tuple(manifest["proteins"]),
        Views(features["expression"], features["ranks"], features["panel"], None, len(genes)),
        members,
        Blend(_below(arrays, "blend/weights/"), arrays["blend/intercept"]),
        arrays["confidence"],
        arrays["half_width"],
        manifest["facts"],
    )


def _below(arrays: Arrays, start: str) -> Arrays:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
