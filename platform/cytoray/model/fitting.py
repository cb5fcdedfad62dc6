"""Fit a model with a head to labelled cells in plain torch: keyed shuffling, micro-batches, the best epoch kept."""

# C cells, B cells of one micro-batch, K outputs

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from cytoray import progress
from cytoray.config import Config
from cytoray.errors import TrainingError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig, NumberLoss
from cytoray.model.groups import freeze, parameter_groups
from cytoray.model.losses import SummedLoss
from cytoray.model.predictor import group_by_length
from cytoray.model.targets import ClassTarget, HeadTarget, NumberTarget, Scale, points_since_best, summarise
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedMinibatch, collate_packed
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.packed import PackedCells, take
from cytoray.tokens.tokenizer import CellTokenizer

Head = Literal["classification", "regression"]
Int64 = npt.NDArray[np.int64]
CLIP_NORM = 1.0
MOST_TOKENS = 4_096  # of a minibatch: it stays in the CPU's cache, see CellPredictor


class FitConfig(Config):
    """Settings of the fit."""

    epochs: int = Field(1, ge=1, description="Passes over the training cells.")
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="AdamW's learning rate.")
    batch_size: int = Field(24, ge=1, description="Cells per optimizer step.")
    patience: int | None = Field(
        None, ge=1, description="Number of epochs without a better validation loss after which to stop."
    )
    freeze_layers: int = Field(
        0, ge=0, description="Number of first transformer layers that are frozen, with the gene embeddings."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate per layer below the heads, which have the full one."
    )
    number_loss: NumberLoss = Field(
        "squared", description="Loss of numbers: squared error, or huber, which large errors change less."
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="Share of cells held out to select the best epoch.")
    seed: int = Field(0, ge=0, description="Seed of the hold-out, the order of cells, ties and dropout.")


@dataclass(frozen=True, eq=False)
class Examples:
    """C cells, each with at least one gene, and their targets."""

    cells: PackedCells
    targets: Tensor  # int64 (C,) classes, or float32 (C, K)

    def take(self, rows: Int64) -> Examples:
        """The examples at ``rows``."""
        return Examples(take(self.cells, rows), self.targets[torch.from_numpy(rows)])

    def standardised(self, scale: Scale) -> Examples:
        """The same cells with their numbers standardised."""
        return Examples(self.cells, scale.standardise(self.targets))


def hold_out(strata: Int64, *, fraction: float, seed: int) -> tuple[Int64, Int64]:
    """Split rows into training and held-out ones, keyed by (seed, row): a share of each stratum, never all of it."""
    keys = combine(int(Purpose.SPLIT), seed, np.arange(len(strata)))
    held = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        count = min(round(fraction * len(rows)), len(rows) - 1)
        held.append(rows[np.argsort(keys[rows], kind="stable")[:count]])
    chosen = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(strata)), chosen), chosen


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


class Fit:
    """Fitting of a bundle's model, in place."""

    def __init__(
        self,
        bundle: ModelBundle,
        head: Head,
        config: FitConfig,
        *,
        below_KK: Tensor | None = None,
        is_trained: bool = False,
    ) -> None:
        """``below_KK`` (bool) of ``LabelTree.below``: classes may lie below others.

        ``is_trained``: the head has learned numbers before, and starts from them.
        """
        self._model, self._head, self._config, self._is_trained = bundle.model, head, config, is_trained
        self._target: HeadTarget = (
            ClassTarget(below_KK) if head == "classification" else NumberTarget(config.number_loss)
        )
        self._answering = bundle.tokenizer()
        self._drawing = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config, panel=self._answering.panel)

    def run(self, train: Examples, validation: Examples | None, *, advance: progress.Advance) -> list[dict[str, Any]]:
        """Train and return one record per epoch; the model ends in eval mode with the weights of the best epoch.

        The best epoch has the lowest validation loss; without validation it is the last. Raises TrainingError if a
        loss is not finite, ConfigError if more layers are to be frozen than the model has. Numbers are standardised
        by those of ``train``, so losses are in units of their variance.
        """
        if self._head == "classification":
            return self._run(train, validation, advance)
        scale = Scale.of(train.targets)
        train = train.standardised(scale)
        validation = None if validation is None else validation.standardised(scale)
        assert self._model.cls_decoder is not None, "a model with a head"
        with scale.within(self._model.cls_decoder, is_trained=self._is_trained):
            return self._run(train, validation, advance)

    def _run(self, train: Examples, validation: Examples | None, advance: progress.Advance) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = []
        best: dict[str, Tensor] | None = None
        with _trained(self._model, self._config.freeze_layers), seeded(self._config.seed, self._model.device):
            optimizer = self._optimizer()
            for epoch in range(self._config.epochs):
                history.append({"epoch": epoch, "train_loss": self._epoch(train, epoch, optimizer, advance)})
                if validation is None:
                    continue
                history[-1] |= self.judge(validation)
                num_worse = points_since_best([record["validation_loss"] for record in history])
                if num_worse == 0:
                    best = _snapshot(self._model)
                if self._config.patience and num_worse >= self._config.patience:
                    break
        if best is not None:
            self._model.load_state_dict(best)
        return history

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = self._config.learning_rate
        groups = parameter_groups(self._model, layer_decay=self._config.layer_decay)
        settings = [{"params": group["params"], "lr": rate * group["rate_scale"]} for group in groups]
        return torch.optim.AdamW(settings)

    def judge(self, examples: Examples) -> dict[str, float]:
        """Return ``validation_loss``, and the ``accuracy`` of classes or ``r2`` and ``pearson`` of numbers."""
        self._model.eval()
        rows = np.arange(len(examples.targets))
        sums: dict[str, float] = {}
        with torch.inference_mode():
            for places, batch in self._micro_batches(examples, rows, epoch=None):
                for name, found in self._figures(examples, places, batch).items():
                    sums[name] = sums.get(name, 0.0) + found.total.item()
        means = {name: total / len(rows) for name, total in sums.items()}
        loss = _finite(means.pop(next(iter(means))), self._config)
        return {"validation_loss": loss} | summarise(means)

    def _epoch(self, train: Examples, epoch: int, optimizer: torch.optim.Optimizer, advance: progress.Advance) -> float:
        """Train on all cells once, in a new order; return the mean loss per cell."""
        self._model.train()
        keys = combine(int(Purpose.ORDER), self._config.seed, epoch, np.arange(len(train.targets)))
        order = np.argsort(keys, kind="stable")
        total = 0.0
        for start in range(0, len(order), self._config.batch_size):
            rows = order[start : start + self._config.batch_size]
            loss = self._step(train, rows, epoch, optimizer)
            total += loss * len(rows)
            advance(len(rows), f"epoch {epoch + 1}, loss {loss:.4f}")
        return total / len(order)

    def _step(self, train: Examples, rows: Int64, epoch: int, optimizer: torch.optim.Optimizer) -> float:
        """Take one step on the mean loss of the cells at ``rows``, accumulated over micro-batches."""
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for places, batch in self._micro_batches(train, rows, epoch=epoch):
            loss = next(iter(self._figures(train, places, batch).values())).total / len(rows)
            loss.backward()
            total += loss.item()
        _finite(total, self._config)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        optimizer.step()
        return total

    def _micro_batches(
        self, examples: Examples, rows: Int64, *, epoch: int | None
    ) -> Iterator[tuple[Int64, PackedMinibatch]]:
        """Yield rows and tokens of cells of similar length; ties and samples are drawn anew in each epoch."""
        for start in range(0, len(rows), MOST_TOKENS):
            some = rows[start : start + MOST_TOKENS]
            cells = take(examples.cells, some)
            tokens = self._answering(cells) if epoch is None else self._drawing(cells, epoch=epoch)
            for places in group_by_length(tokens.lengths, batch_tokens=MOST_TOKENS):
                yield some[places], collate_packed(tokens.take(places)).to(self._model.device)

    def _figures(self, examples: Examples, rows: Int64, batch: PackedMinibatch) -> dict[str, SummedLoss]:
        """Return the figures of the cells at ``rows``, whose tokens are ``batch``; the loss first."""
        targets = examples.targets[torch.from_numpy(rows)].to(self._model.device)
        return self._target.judge(self._model.classify(self._model.embed(batch)), targets)


@contextmanager
def _trained(model: ScGPT, freeze_layers: int) -> Iterator[None]:
    """Freeze the first layers within the block; afterwards the model is unfrozen and in eval mode."""
    parameters = freeze(model, freeze_layers)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.zero_grad(set_to_none=True)
        model.eval()


def _snapshot(model: ScGPT) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _finite(loss: float, config: FitConfig) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss}.",
            remedy=f"Train with a learning_rate below {config.learning_rate:g}, or scale labels.",
        )
    return loss
