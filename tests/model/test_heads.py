"""The value encoder and the heads against their published formulas, written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from cytoray.model.encoders import ValueEncoder
from cytoray.model.heads import AffineExpressionDecoder, CellClassifier, ExpressionDecoder
from cytoray.model.transformer import ScGPT

Array = npt.NDArray[np.float64]


def _weights(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _jittered(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def _linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _input(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape)


@torch.no_grad()
def test_value_encoder() -> None:
    encoder, values = _jittered(ValueEncoder(6, dropout=0.2)), np.array([[-2.0, -1.0, 0.0, 7.0, 600.0]])
    w = _weights(encoder)
    hidden = np.maximum(_linear(np.minimum(values, 512)[..., None], w, "linear1"), 0)
    want = _norm(_linear(hidden, w, "linear2"), w, "norm")
    np.testing.assert_allclose(encoder(torch.from_numpy(values)).numpy(), want, rtol=1e-10)


@torch.no_grad()
def test_expression_decoder() -> None:
    decoder, hidden = _jittered(ExpressionDecoder(6)), _input(2, 3, 6)
    w = _weights(decoder)
    x = hidden
    for name in ("fc.0", "fc.2"):
        x = _linear(x, w, name)
        x = np.where(x > 0, x, 0.01 * x)
    got = decoder(torch.from_numpy(hidden)).value.numpy()
    np.testing.assert_allclose(got, _linear(x, w, "fc.4")[..., 0], rtol=1e-10)


@torch.no_grad()
def test_cell_classifier() -> None:
    classifier, cells = _jittered(CellClassifier(6, num_labels=4, num_layers=3)), _input(5, 6)
    w = _weights(classifier)
    x = cells
    for linear, norm in (("_decoder.0", "_decoder.2"), ("_decoder.3", "_decoder.5")):
        x = _norm(np.maximum(_linear(x, w, linear), 0), w, norm)
    got = classifier(torch.from_numpy(cells)).numpy()
    np.testing.assert_allclose(got, _linear(x, w, "out_layer"), rtol=1e-10)


@torch.no_grad()
def test_gene_encoder(build_model: Callable[..., ScGPT]) -> None:
    encoder = build_model(dtype=torch.float64).encoder
    w, genes = _weights(encoder), np.array([[3, 60, 61]])
    want = _norm(w["embedding.weight"][genes], w, "enc_norm")
    np.testing.assert_allclose(encoder(torch.from_numpy(genes)).numpy(), want, rtol=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (None, lambda x: x),
        ("ReLU", lambda x: np.maximum(x, 0)),
        ("Tanh", np.tanh),
        ("Sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("Softplus", lambda x: np.log1p(np.exp(x))),
    ],
)
def test_the_affine_decoder_activates_factor_and_offset_before_the_adaptive_factor(
    activation: Any, function: Callable[[Array], Array], adaptive: bool
) -> None:
    head = _jittered(AffineExpressionDecoder(8, adaptive_bias=adaptive, activation=activation))
    hidden, values, means = _input(6, 8), np.arange(6.0), np.arange(2.0, 8.0)
    weights = _weights(head)

    def tower(name: str) -> Array:
        x = hidden
        for number in (0, 2, 4):
            x = _linear(x, weights, f"{name}.fc.{number}")
            x = np.where(x > 0, x, 0.01 * x) if number < 4 else x
        return function(x[:, 0])

    expected = tower("coeff_decoder") * values + tower("bias_decoder") * (means if adaptive else 1)
    inputs = (torch.from_numpy(array) for array in (values, means))
    got = head(torch.from_numpy(hidden), values_T=next(inputs), cell_means_T=next(inputs))
    np.testing.assert_allclose(got.value.detach().numpy(), expected, rtol=1e-12)
