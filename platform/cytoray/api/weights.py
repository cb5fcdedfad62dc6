"""Load the bundle that a configuration names, or make one of random weights."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import replace
from typing import Any

from cytoray.api.config import checked, scGPTConfig
from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.device import choose_device
from cytoray.model.fitting import seeded
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import REGISTERED, open_model
from cytoray.tokens.inference import InferenceConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig

logger = logging.getLogger(__name__)
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
    bundle = adapted(_open(config, str(config.model)), config)
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


def refuse_conditions(config: ModelConfig) -> None:
    """Raise ModelError for models whose tokens need more than genes and values."""
    missing = config.needed_to_embed
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


def _open(config: scGPTConfig, name: str) -> ModelBundle:
    """Open the model that ``config`` names; the number of heads is used where a public checkpoint does not give it."""
    tracking = None
    if config.tracking_uri is not None and name.startswith(REGISTERED):
        tracking = checked(TrackingConfig, {"uri": config.tracking_uri})
    opened = open_model(
        name,
        store=None if config.store is None else str(config.store),
        tracking=tracking,
        cache_folder=config.cache_folder,
        num_heads=config.nheads if "nheads" in config.given else None,
    )
    return opened.bundle


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
