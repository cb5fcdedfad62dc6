"""Load the bundle that a configuration names: a folder, s3://, models:/ or random weights."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cytoray import storage
from cytoray.api.config import checked, scGPTConfig
from cytoray.errors import ConfigError, ModelError, NotFoundError
from cytoray.model.bundle import DIGESTS, ModelBundle, load_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.device import choose_device
from cytoray.model.public_checkpoint import WEIGHTS, load_public_checkpoint, names_heads
from cytoray.model.transformer import ScGPT
from cytoray.tokens.inference import InferenceConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)
REGISTERED = "models:/"
_ARCHITECTURE = {
    "nlayers": "num_layers",
    "nheads": "num_heads",
    "embsize": "width",
    "d_hid": "feedforward_width",
    "n_layers_cls": "num_classifier_layers",
}
_TOKENS = {name: name for name in ("max_length", "pad_value", "mask_value", "ties")} | {"binning_seed": "seed"}
_INFERENCE = {"inference": "mode", "inference_length": "max_length"}


def load_weights(config: scGPTConfig) -> ModelBundle:
    """Load the bundle that ``config`` names, on its device; raises errors that name a wrong name, folder or content."""
    device = choose_device(config.device)
    if config.model is None:
        bundle = _random(config)
        bundle.model.to(device)
        return bundle
    bundle = adapted(_load(config, str(config.model)), config)
    bundle.model.to(device)
    return bundle


def adapted(bundle: ModelBundle, config: scGPTConfig) -> ModelBundle:
    """The bundle with the tokens that ``config`` asks for; ModelError if it asks for another architecture."""
    _refuse_contradictions(config, bundle.model.config)
    changes = {field: getattr(config, name) for name, field in _TOKENS.items() if name in config.given}
    tokenizer_config = bundle.tokenizer_config.model_copy(update=changes)
    given = {field: getattr(config, name) for name, field in _INFERENCE.items() if name in config.given}
    inference = bundle.inference.model_copy(update=given)
    same = tokenizer_config == bundle.tokenizer_config and inference == bundle.inference
    digest = bundle.digest if same else None
    return replace(bundle, tokenizer_config=tokenizer_config, inference=inference, digest=digest)


def in_force(config: scGPTConfig, bundle: ModelBundle) -> scGPTConfig:
    """The configuration with the values that the bundle has; which of them the user set stays known."""
    shape, tokens = bundle.model.config, bundle.tokenizer_config
    values = {name: getattr(shape, field) for name, field in _ARCHITECTURE.items()}
    if shape.num_labels == 0:
        values["n_layers_cls"] = config.n_layers_cls
    values |= {name: getattr(tokens, field) for name, field in _TOKENS.items()}
    values |= {name: getattr(bundle.inference, field) for name, field in _INFERENCE.items()}
    values |= {"dropout": shape.dropout, "device": str(bundle.model.device)}
    return type(config).model_construct(_fields_set=set(config.given), **{**dict(config), **values})


def on_device(bundle: ModelBundle, config: scGPTConfig) -> ModelBundle:
    """The bundle on the device that ``config`` names, if any; a model that must move is copied first."""
    device = choose_device(config.device)
    here = bundle.model.device
    is_there = here.type == device.type and device.index in (None, here.index)
    if "device" not in config.given or is_there:
        return bundle
    return replace(bundle, model=copy.deepcopy(bundle.model).to(device))


def with_head(bundle: ModelBundle, config: ModelConfig, *, seed: int, keep: bool) -> ScGPT:
    """A copy of the bundle's model in the shape of ``config``; its classifier is new unless kept."""
    source = bundle.model
    with seeded(seed):
        model = ScGPT(config, pad_id=source.pad_id)
    tensors = source.state_dict()
    if not keep:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("cls_decoder.")}
    loaded = model.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys, f"the copy lacks {loaded.unexpected_keys}"
    return model.to(source.device).eval()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch within the block and restore its generators afterwards."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def refuse_conditions(config: ModelConfig) -> None:
    """Raise ModelError for models whose tokens need more than genes and values."""
    needs = {
        "batch labels": config.token_norm == "domain",
        "modalities": config.num_modalities > 0,
        "perturbation flags": config.num_perturbation_flags > 0,
    }
    missing = [name for name, needed in needs.items() if needed]
    if missing:
        raise ModelError(
            f"This model needs {' and '.join(missing)} for each cell, which the Python API does not pass on.",
            remedy="Use a model of genes and values, such as the pretrained ones.",
        )


def _random(config: scGPTConfig) -> ModelBundle:
    text = (
        "scGPT has RANDOM weights: embeddings and predictions mean nothing. Give trained ones, for instance "
        "scGPTConfig(model='path/to/scGPT_human') with a public checkpoint or bundle, its s3:// URI, or "
        "'models:/NAME@ALIAS' with tracking_uri."
    )
    logger.warning(text)
    warnings.warn(text, UserWarning, stacklevel=4)
    vocabulary = GeneVocabulary.load_default()
    names = {field: getattr(config, name) for name, field in _ARCHITECTURE.items()}
    with seeded(config.seed):
        shape = ModelConfig(vocabulary_size=vocabulary.size, dropout=config.dropout, **names)
        model = ScGPT(shape, pad_id=vocabulary.pad_id).eval()
    tokens = {field: getattr(config, name) for name, field in _TOKENS.items()}
    tokenizer_config = TokenizerConfig(cls_value=config.pad_value, **tokens)
    inference = InferenceConfig(mode=config.inference, max_length=config.inference_length)
    lineage = {"source": f"random weights, seed {config.seed}"}
    return ModelBundle(model, vocabulary, tokenizer_config, lineage=lineage, inference=inference)


def _load(config: scGPTConfig, name: str) -> ModelBundle:
    if name.startswith(REGISTERED):
        return _from_registry(config, name)
    if not storage.is_remote(name):
        return _open_folder(storage.local_path(name), config)
    if not any(storage.exists(storage.join(name, marker)) for marker in (DIGESTS, WEIGHTS)):
        raise _no_model(name)
    with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch:
        storage.download_folder(name, Path(scratch) / "model")
        return _open_folder(Path(scratch) / "model", config)


def _open_folder(folder: Path, config: scGPTConfig) -> ModelBundle:
    """Load a bundle or a public checkpoint, depending on the files in the folder."""
    if (folder / DIGESTS).exists():
        return load_bundle(folder)
    if not (folder / WEIGHTS).exists():
        raise _no_model(str(folder), there=sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None)
    # Tensors do not show the number of heads: if args.json does not give it, the user must.
    asked = "nheads" in config.given and not names_heads(folder)
    checkpoint = load_public_checkpoint(folder, overrides={"num_heads": config.nheads} if asked else None)
    logger.info("%s: %s", config.model, checkpoint.report.text())
    return checkpoint.to_bundle()


def _no_model(name: str, there: list[str] | None = None) -> NotFoundError:
    holds = "" if there is None else f"; it holds {', '.join(there[:10]) or 'nothing'}"
    return NotFoundError(
        f"model: {name} is neither a bundle ({DIGESTS}) nor a public checkpoint ({WEIGHTS}){holds}.",
        remedy="Give the folder or s3:// URI of either, or models:/NAME@ALIAS.",
        model=name,
    )


def _from_registry(config: scGPTConfig, name: str) -> ModelBundle:
    from cytoray.registry.models import resolve
    from cytoray.tracking.server import TrackingConfig

    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise ConfigError(
            f"model: {name} is a registered model, but no MLflow server is given.",
            remedy="Give tracking_uri (http://host:port or sqlite:///mlflow.db), or set MLFLOW_TRACKING_URI.",
        )
    bundle, _ = resolve(
        name, tracking=checked(TrackingConfig, {"uri": uri}), cache_folder=Path(config.cache_folder).expanduser()
    )
    return bundle


def _refuse_contradictions(config: scGPTConfig, shape: ModelConfig) -> None:
    """Refuse the first argument that contradicts the weights."""
    for name, field in _ARCHITECTURE.items():
        wanted: Any = getattr(config, name)
        actual: Any = getattr(shape, field)
        if name == "n_layers_cls" and shape.num_labels == 0:
            continue  # weights without a classifier say nothing about one
        if name in config.given and wanted != actual:
            raise ModelError(
                f"{name}={wanted} was asked for, but the weights ({config.model or 'bundle'}) have {name}={actual}.",
                remedy=f"Leave {name} out: with a model it comes from the weights.",
                argument=name,
                given=wanted,
                weights=actual,
            )
