"""Freeze the first layers of a model, and lower the learning rate of its lower layers, in every kind of training."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from cytoray.errors import ConfigError
from cytoray.model.transformer import ScGPT

HEADS = ("decoder.", "mvc_decoder.", "cls_decoder.", "grad_reverse_discriminator.")


class ParameterGroup(TypedDict):
    """Parameters of one learning rate, as torch's optimizers take them."""

    params: list[nn.Parameter]
    rate_scale: float  # factor on the learning rate


def freeze(model: ScGPT, num_layers: int) -> list[nn.Parameter]:
    """Freeze the first ``num_layers`` transformer layers and the gene embeddings; return what was not frozen before.

    Nothing is frozen for 0. Raises ConfigError if the model has fewer layers.
    """
    if num_layers > model.config.num_layers:
        raise ConfigError(
            f"freeze_layers is {num_layers}.",
            remedy=f"This model has {model.config.num_layers} layers to freeze.",
            key="freeze_layers",
        )
    if num_layers == 0:
        return []
    frozen = [model.encoder, *list(model.transformer_encoder.layers)[:num_layers]]
    parameters = [parameter for module in frozen for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    return parameters


def parameter_groups(model: ScGPT, *, layer_decay: float) -> list[ParameterGroup]:
    """Return the trained parameters of a model, grouped by depth.

    Heads have the full learning rate, the last transformer layer that times ``layer_decay``, each layer below another
    factor of it, and the embeddings that of a layer below the first (Clark et al. 2020, ELECTRA).
    """
    groups: dict[float, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** _layers_above(name, model.config.num_layers)
            groups.setdefault(scale, {"params": [], "rate_scale": scale})["params"].append(parameter)
    return list(groups.values())


def _layers_above(name: str, num_layers: int) -> int:
    """Return how many layers a parameter is below the heads: 0 for heads, 1 for the last transformer layer."""
    if name.startswith(HEADS):
        return 0
    if name.startswith("transformer_encoder.layers."):
        return num_layers - int(name.split(".")[2])
    return num_layers + 1
