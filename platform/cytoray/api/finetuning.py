"""``scGPTFineTuningModel``: a pretrained model and a head of its own, trained on labelled cells."""

# C cells, K outputs

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
import torch

from cytoray.api.config import checked, scGPTConfig
from cytoray.api.dataset import scGPTDataset, some
from cytoray.api.inference import watched
from cytoray.api.labels import UNUSED, Classes, aligned, is_unused, numbers
from cytoray.api.model import scGPT
from cytoray.api.weights import refuse_conditions
from cytoray.errors import ConfigError, ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig, NumberLoss
from cytoray.model.fitting import Examples, Fit, FitConfig, Head, hold_out, with_head
from cytoray.model.targets import HEAD, LABEL_TYPE, NUMBER, REGRESSION
from cytoray.model.transformer import ScGPT
from cytoray.tokens.label_tree import LabelTree
from cytoray.tokens.labels import missing_spellings_warning

Float32 = npt.NDArray[np.float32]


class scGPTFineTuningModel(scGPT):
    """scGPT with a head of K outputs on the cell embedding of its weights (mostly ``<cls>``).

    ``history`` has one record per epoch of the last training.
    """

    def __init__(
        self,
        scGPT_config: scGPTConfig | None = None,
        fine_tuning_head: Head = "classification",
        output_size: int | None = None,
    ) -> None:
        """Load weights as scGPT does and add a head of ``output_size`` outputs.

        If the weights have a head of this kind and size it is kept, and ``output_size`` may be left out; otherwise
        the head is initialised from ``scGPT_config.seed``. Raises ConfigError that names a wrong argument.
        """
        super().__init__(scGPT_config)
        self._give_head(fine_tuning_head, output_size)

    @classmethod
    def from_bundle(
        cls,
        bundle: ModelBundle,
        *,
        configurer: scGPTConfig | None = None,
        fine_tuning_head: Head = "classification",
        output_size: int | None = None,
    ) -> Self:
        """Build the same from a bundle in memory, which is not changed."""
        self = super().from_bundle(bundle, configurer=configurer)
        self._give_head(fine_tuning_head, output_size)
        return self

    def train(
        self,
        train_input_data: scGPTDataset,
        train_labels: Any,
        *,
        validation_fraction: float = 0.1,
        validation_input_data: scGPTDataset | None = None,
        validation_labels: Any = None,
        epochs: int = 1,
        learning_rate: float = 1e-4,
        batch_size: int | None = None,
        patience: int | None = None,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        number_loss: NumberLoss = "squared",
        label_tree: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> list[dict[str, Any]]:
        """Train all weights except frozen ones with AdamW, keep those of the best epoch, and return the history.

        ``train_labels``: one text or whole number per cell, or for regression numbers (C,) or (C, K); a Series or
        DataFrame whose index has the cells' names is matched by name, and refused if it names only some of them.
        Whole numbers below K are the numbers of the outputs. Epochs are judged by the loss on
        ``validation_input_data``, or on ``validation_fraction`` of the cells, of each class its share; with neither,
        the last epoch stays. ``layer_decay`` below 1 lowers the learning rate per layer below the head. With
        ``label_tree``, the parent of each label, a cell labelled "T cell" is not taught that it is no "CD4 T cell".
        Numbers are standardised for training, so their losses are in units of their variance; ``number_loss`` "huber"
        gives outliers less weight.
        Cells without a known gene are left out, with a warning.

        Raises ConfigError for settings, ModelError for labels that are missing, too few or many, or unseen before,
        TrainingError if the loss is not finite. The model always ends in eval mode.
        """
        settings: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "patience": patience}
        settings |= {"batch_size": batch_size, "validation_fraction": validation_fraction, "number_loss": number_loss}
        settings |= {"seed": seed}
        settings |= {"freeze_layers": freeze_layers, "layer_decay": layer_decay}
        defaults = {"batch_size": self.config.batch_size, "seed": self.config.seed}
        given = {name: defaults.get(name) if value is None else value for name, value in settings.items()}
        config = checked(FitConfig, given)
        if (validation_input_data is None) != (validation_labels is None):
            raise ConfigError("validation_input_data and validation_labels go together.", remedy="Give both or none.")
        targets = self._learn_labels(aligned(train_labels, train_input_data, what="train_labels"), config)
        train, validation = self._examples(train_input_data, targets), None
        if validation_input_data is None:
            train, validation = self._split(train, config)
        else:
            labels = aligned(validation_labels, validation_input_data, what="validation_labels", like=train_labels)
            validation = self._examples(validation_input_data, self._targets(labels, seen=targets))
        if patience is not None and validation is None:
            raise ConfigError("patience needs validation.", remedy="Set validation_fraction above 0, or leave it out.")
        with watched("train", total=config.epochs * len(train.targets)) as advance:
            is_trained = self.bundle.lineage.get(LABEL_TYPE) == NUMBER
            fit = Fit(self.bundle, self.head, config, below_KK=self._below(label_tree), is_trained=is_trained)
            self.history = fit.run(train, validation, advance=advance)
        if self.head == REGRESSION:
            self.bundle = replace(self.bundle, lineage={**self.bundle.lineage, LABEL_TYPE: NUMBER})
        return self.history

    def get_outputs(self, dataset: scGPTDataset) -> Float32:
        """Return the outputs of the head, float32 (C, K): logits or numbers; NaN for cells without a known gene.

        They are the head's alone: ``cytoray.annotate`` answers with the annotator that a served bundle may carry.
        """
        self._check(dataset)
        with watched("predict", total=len(dataset)) as advance:
            return self._inference(dataset, advance).logits()

    def predict(self, dataset: scGPTDataset) -> npt.NDArray[Any]:
        """Return the label of each cell (C,), None without a known gene; for regression the outputs, (C,) or (C, K)."""
        outputs = self.get_outputs(dataset)
        if self.head == "regression":
            return outputs[:, 0] if outputs.shape[1] == 1 else outputs
        if all(map(is_unused, self.bundle.labels)):
            raise ModelError("This head has not been trained.", remedy="Call train first.")
        return self._classes.decode(outputs)

    @property
    def _classes(self) -> Classes:
        return Classes(self.bundle.labels, numbers=self.bundle.lineage.get(LABEL_TYPE) == "int")

    def _give_head(self, head: Head, output_size: int | None) -> None:
        """Replace the bundle by a copy with a head."""
        if head not in get_args(Head):
            raise ConfigError(f"fine_tuning_head is {head!r}.", remedy=f"Choose one of {', '.join(get_args(Head))}.")
        self.head, self.history = head, list[dict[str, Any]]()
        bundle = self.bundle
        there = len(bundle.labels) if bundle.lineage.get(HEAD, "classification") == head else 0
        size = there if output_size is None else output_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"output_size is {output_size!r}.",
                remedy="Give the number of classes, or of numbers per cell, 1 or more.",
            )
        refuse_conditions(bundle.model.config)
        if size == there:
            self.bundle = replace(bundle, model=self._with_head(size, seed=self.config.seed, keep=True))
            return
        name = UNUSED if head == "classification" else "value_{}"
        names = tuple(name.format(number + (head == "classification")) for number in range(size))
        self._replace_head(names, {HEAD: head, LABEL_TYPE: ""}, seed=self.config.seed)

    def _with_head(self, size: int, *, seed: int, keep: bool) -> ScGPT:
        """A copy of the model with a head of ``size`` outputs."""
        config, settings = self.bundle.model.config, self._settings
        changes: dict[str, Any] = {"num_labels": size}
        if "dropout" in settings.given:
            changes["dropout"] = settings.dropout
        if "n_layers_cls" in settings.given:
            changes["num_classifier_layers"] = settings.n_layers_cls
        shape = ModelConfig.model_validate(config.model_dump() | changes)
        return with_head(self.bundle, shape, seed=seed, keep=keep)

    def _replace_head(self, names: tuple[str, ...], lineage: dict[str, str], *, seed: int) -> None:
        """Give the model a new head, initialised from ``seed``, whose outputs have ``names``."""
        bundle = self.bundle
        model = self._with_head(len(names), seed=seed, keep=False)
        parent = bundle.lineage.get("parent_bundle_digest") or bundle.digest or ""
        lineage = {**bundle.lineage, "parent_bundle_digest": parent, **lineage}
        self.bundle = ModelBundle(model, bundle.vocabulary, bundle.tokenizer_config, names, lineage)

    def _learn_labels(self, labels: npt.NDArray[Any], config: FitConfig) -> npt.NDArray[Any]:
        """Targets of the training labels; a head trained on other classes is replaced."""
        if len(labels) == 0:
            raise ModelError("No cells to train with.", remedy="Give a data set that has cells.")
        size = self.bundle.model.config.num_labels
        if self.head == "regression":
            self.bundle.digest = None
            return numbers(labels, size, what="train_labels")
        classes = Classes.of(labels, size)
        if warning := missing_spellings_warning(classes.names, where="train_labels"):
            warnings.warn(warning, UserWarning, stacklevel=3)
        lineage = {HEAD: self.head, LABEL_TYPE: "int" if classes.numbers else "str"}
        if classes.names != self.bundle.labels:
            trained = not all(map(is_unused, self.bundle.labels))
            if trained or config.seed != self.config.seed:
                self._replace_head(classes.names, lineage, seed=config.seed)
        lineage = {**self.bundle.lineage, **lineage}
        self.bundle = replace(self.bundle, labels=classes.names, lineage=lineage, digest=None, attachments={})
        return classes.codes(labels)

    def _below(self, tree: Mapping[str, str] | None) -> torch.Tensor | None:
        """Bool (K, K): whether class j is class i or below it; None without a tree of classes."""
        if tree is None:
            return None
        if self.head == "regression":
            raise ConfigError("label_tree needs classes.", remedy="Leave it out for regression.")
        return torch.from_numpy(LabelTree(dict(tree)).below(self.bundle.labels))

    def _targets(self, labels: npt.NDArray[Any], *, seen: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Targets of validation labels; classes that are not among the ``seen`` ones are refused."""
        if self.head == "regression":
            return numbers(labels, self.bundle.model.config.num_labels, what="validation_labels")
        return self._classes.codes(labels, known={self.bundle.labels[code] for code in np.unique(seen)})

    def _examples(self, dataset: scGPTDataset, targets: npt.NDArray[Any]) -> Examples:
        """The cells with a known gene and their targets; a warning names the others."""
        self._check(dataset)
        empty = [dataset.obs_names[row] for row in dataset.empty_rows]
        if empty:
            text = f"{len(empty):,} cells have no gene that the model knows and are left out: {some(empty)}."
            warnings.warn(text, UserWarning, stacklevel=3)
        rows = np.flatnonzero(dataset.cells.num_genes_per_cell > 0)
        if len(rows) == 0:
            raise ModelError("No cell has a gene that the model knows.", remedy="Look at dataset.report.")
        return Examples(dataset.cells, torch.from_numpy(targets)).take(rows)

    def _split(self, train: Examples, config: FitConfig) -> tuple[Examples, Examples | None]:
        """Training and held-out examples; None if no cell is held out."""
        one = np.zeros(len(train.targets), np.int64)
        strata = train.targets.numpy() if self.head == "classification" else one
        rows, held = hold_out(strata, fraction=config.validation_fraction, seed=config.seed)
        return train.take(rows), train.take(held) if len(held) else None
