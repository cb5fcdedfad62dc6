"""Frozen layers and the learning rates of lower layers."""

from __future__ import annotations

import pytest
import torch

from cytoray.errors import ConfigError
from cytoray.model.config import ModelConfig
from cytoray.model.groups import freeze, parameter_groups
from cytoray.model.transformer import ScGPT


@pytest.fixture
def model() -> ScGPT:
    shape = {"width": 8, "num_heads": 2, "feedforward_width": 8, "num_layers": 3, "num_labels": 2}
    return ScGPT(ModelConfig(vocabulary_size=12, **shape), pad_id=0)


def test_each_layer_has_its_share_of_the_learning_rate(model: ScGPT) -> None:
    scales = {
        id(one): group["rate_scale"] for group in parameter_groups(model, layer_decay=0.5) for one in group["params"]
    }
    by_name = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(by_name) == len(scales), "every parameter is in one group"
    assert {scale for name, scale in by_name.items() if "decoder" in name} == {1.0}
    layers = {int(name.split(".")[2]): scale for name, scale in by_name.items() if ".layers." in name}
    assert layers == {0: 0.125, 1: 0.25, 2: 0.5}
    assert {scale for name, scale in by_name.items() if "encoder." in name and ".layers." not in name} == {0.0625}


def test_one_group_without_decay(model: ScGPT) -> None:
    (group,) = parameter_groups(model, layer_decay=1.0)
    assert group["rate_scale"] == 1.0
    assert len(group["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group(model: ScGPT) -> None:
    frozen = freeze(model, 1)
    trained = {id(one) for group in parameter_groups(model, layer_decay=0.5) for one in group["params"]}
    assert {id(one) for one in frozen} == {id(one) for one in model.parameters()} - trained
    assert {id(one) for one in model.encoder.parameters()} <= {id(one) for one in frozen}
    assert sum(map(torch.numel, frozen)) < sum(map(torch.numel, model.parameters()))
    assert freeze(model, 1) == [], "they are frozen already"


def test_nothing_is_frozen_by_default(model: ScGPT) -> None:
    assert freeze(model, 0) == []


def test_a_model_has_only_so_many_layers(model: ScGPT) -> None:
    with pytest.raises(ConfigError, match=r"freeze_layers is 4.*3 layers to freeze"):
        freeze(model, 4)
