"""Labels of cells as what a head learns from: class codes or numbers, checked and matched to the cells by name."""

# C cells, K outputs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.api.dataset import scGPTDataset, some
from cytoray.errors import ModelError
from cytoray.tokens.labels import label_text

Int64 = npt.NDArray[np.int64]
UNUSED = "(unused {})"  # name of an output that no class has


def aligned(labels: Any, dataset: scGPTDataset, *, what: str, like: Any = None) -> npt.NDArray[Any]:
    """The labels of the C cells in the order of the data set, as objects (C,) or (C, K), none of them missing.

    A Series or DataFrame is matched by its index if that holds the names of the cells; labels without names of cells
    are matched by position. The columns of a DataFrame come in the order of those of ``like``, if that is one too.
    Raises ModelError for an index that names some of the cells, or other cells as well, for another number of labels,
    and for missing ones, which it names.
    """
    values = _in_order(labels, dataset, what=what, like=like)
    if values.ndim not in (1, 2):
        raise ModelError(f"{what} have shape {values.shape}.", remedy="Give one label for each cell.")
    if len(values) != len(dataset):
        raise ModelError(
            f"{what}: there are {len(values):,} labels for {len(dataset):,} cells.", remedy="Give one for each cell."
        )
    missing = pd.isna(pd.DataFrame(values)).to_numpy().any(axis=1)
    if missing.any():
        names = [dataset.obs_names[row] for row in np.flatnonzero(missing)]
        raise ModelError(
            f"{what}: {len(names):,} cells have no label: {some(names)}.",
            remedy="Leave these cells out, or label them.",
            cells=names,
        )
    return values


@dataclass(frozen=True)
class Classes:
    """The classes of a head: what its K outputs are called, and whether users know them as numbers."""

    names: tuple[str, ...]  # (K,)
    numbers: bool

    @staticmethod
    def of(labels: npt.NDArray[Any], num_outputs: int) -> Classes:
        """The classes that ``labels`` (C,) tell: whole numbers below K are the outputs' own, others are sorted.

        Raises ModelError for more distinct classes than outputs, and for what is neither text nor a whole number.
        """
        plain = _plain(labels)
        distinct = sorted(set(plain))
        numbers = isinstance(distinct[0], int)
        if numbers and distinct[0] >= 0 and distinct[-1] < num_outputs:
            return Classes(tuple(map(str, range(num_outputs))), numbers=True)
        if len(distinct) > num_outputs:
            raise ModelError(
                f"There are {len(distinct)} classes for output_size {num_outputs}: {', '.join(map(str, distinct))}.",
                remedy=f"Set output_size={len(distinct)}, or leave cells out.",
                classes=[str(name) for name in distinct],
            )
        unused = [UNUSED.format(number + 1) for number in range(num_outputs - len(distinct))]
        return Classes((*map(str, distinct), *unused), numbers)

    def codes(self, labels: npt.NDArray[Any], *, known: set[str] | None = None) -> Int64:
        """Output number of each label (C,); ModelError that names classes which are not ``known``."""
        texts = [str(label) for label in _plain(labels)]
        unseen = sorted(set(texts) - (set(self.names) if known is None else known))
        if unseen:
            raise ModelError(
                f"validation_labels: these classes are not among the training labels: {', '.join(unseen)}.",
                remedy="Leave these cells out, or train with some of them.",
                classes=unseen,
            )
        places = {name: number for number, name in enumerate(self.names)}
        return np.array([places[text] for text in texts], np.int64)

    def decode(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """The likeliest label of each row of (C, K), as the user wrote it; None for a row of NaN."""
        used = [number for number, name in enumerate(self.names) if not is_unused(name)]
        labels = np.empty(len(logits), object)
        for row in np.flatnonzero(np.isfinite(logits).all(axis=1)):
            name = self.names[used[int(np.argmax(logits[row, used]))]]
            labels[row] = int(name) if self.numbers else name
        return labels


def is_unused(name: str) -> bool:
    """Whether ``name`` is that of an output without a class."""
    start, _, end = UNUSED.partition("{}")
    return name.startswith(start) and name.endswith(end)


def numbers(labels: npt.NDArray[Any], num_outputs: int, *, what: str) -> npt.NDArray[np.float32]:
    """Regression targets (C, K) of labels (C,) or (C, K); ModelError for another shape or for what is no number."""
    try:
        values = labels.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what}: not all are numbers ({error}).", remedy="Regression learns numbers.") from error
    values = values.reshape(len(values), -1)
    if values.shape != (len(labels), num_outputs) or not np.isfinite(values).all():
        problem = f"have shape {labels.shape}" if np.isfinite(values).all() else "are not all finite"
        raise ModelError(f"{what} {problem}.", remedy=f"Give finite numbers of shape ({len(labels)}, {num_outputs}).")
    return values.astype(np.float32)


def _in_order(labels: Any, dataset: scGPTDataset, *, what: str, like: Any) -> npt.NDArray[Any]:
    """The labels as an array of objects, rows in the order of the cells and columns in that of ``like``."""
    if not isinstance(labels, pd.Series | pd.DataFrame):
        return np.asarray(labels if isinstance(labels, np.ndarray) else _listed(labels), object)
    if isinstance(labels, pd.DataFrame):
        labels = _columns_in_order(labels, what=what, like=like)
    names, index = pd.Index(dataset.obs_names), labels.index.astype(str)
    if not index.equals(names) and len(index.intersection(names)):
        _refuse_other_cells(index, names, what=what)
        labels = labels.set_axis(index, axis=0).loc[names]
    return np.asarray(labels.to_numpy(), object)


def _columns_in_order(labels: pd.DataFrame, *, what: str, like: Any) -> pd.DataFrame | pd.Series[Any]:
    """The table with the columns of ``like``; a table of one column as that column."""
    if isinstance(like, pd.DataFrame):
        if sorted(map(str, labels.columns)) != sorted(map(str, like.columns)):
            raise ModelError(
                f"{what} has the columns {some([str(name) for name in labels.columns])}, the training labels have "
                f"{some([str(name) for name in like.columns])}.",
                remedy="Give the same columns for both.",
            )
        labels = labels[list(like.columns)]
    return labels.iloc[:, 0] if labels.shape[1] == 1 else labels


def _refuse_other_cells(index: pd.Index[Any], names: pd.Index[Any], *, what: str) -> None:
    """ModelError if labels and cells share some names but cannot be matched one to one."""
    missing, other = names.difference(index), index.difference(names)
    repeated = [*index[index.duplicated()], *names[names.duplicated()]]
    if not (len(missing) or len(other) or repeated):
        return
    problems = [
        f"{len(found):,} {kind} ({some([str(name) for name in found])})"
        for kind, found in (("cells have no label", missing), ("labels are of other cells", other),
                            ("names are repeated", repeated))
        if len(found)
    ]  # fmt: skip
    raise ModelError(
        f"{what}: the index names some of the cells, but {', '.join(problems)}.",
        remedy="Select the labels of these cells (labels.loc[list(dataset.obs_names)]), or pass labels.to_numpy() if "
        "they are in the order of the cells.",
        cells=[str(name) for name in missing[:20]],
    )


def _listed(labels: Any) -> Any:
    if isinstance(labels, str) or not (isinstance(labels, Sequence) or hasattr(labels, "__array__")):
        raise ModelError(f"Labels are a {type(labels).__name__}.", remedy="Give a list, an array or a Series.")
    return labels


def _plain(labels: npt.NDArray[Any]) -> list[Any]:
    """Labels as Python's own int or str, all of one kind."""
    if labels.ndim != 1:
        raise ModelError(f"Class labels have shape {labels.shape}.", remedy="Give one class for each cell.")
    plain = [_plain_one(label) for label in labels]
    if len({type(label) for label in plain}) > 1:
        raise ModelError("Class labels are texts and numbers.", remedy="Give texts only, or whole numbers only.")
    return plain


def _plain_one(label: Any) -> int | str:
    text = label_text(label)
    if isinstance(label, bool | np.bool_ | str | bytes):
        return str(text)
    if isinstance(label, int | np.integer) or (isinstance(label, float | np.floating) and float(label).is_integer()):
        return int(str(text))
    raise ModelError(
        f"{label!r} is no class.", remedy="Give texts or whole numbers, or set fine_tuning_head='regression'."
    )
