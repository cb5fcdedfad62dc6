"""Models in bfloat16: served if their answers stay close to float32, refused with the measured figure if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytoray.errors import ModelError
from cytoray.model.bundle import save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.registry.pinning import pin_model
from cytoray.serving.config import AppArgs
from cytoray.serving.hosting.loading import load_service


def _load(folder: Path, **bounds: float) -> Any:
    args = AppArgs.model_validate({"model_uri": str(folder), "precision": "bfloat16", "precision_check": bounds})
    return load_service(args, pin_model(str(args.model_uri), sources=args.sources()))


def test_a_model_is_served_in_bfloat16_within_the_bounds(
    bundle: Any, tmp_path: Path, make_counts: Any, as_cells: Any
) -> None:
    save_bundle(bundle, tmp_path / "tiny")
    service = _load(tmp_path / "tiny", min_cosine=0.9, min_label_agreement=0.5)
    cells = as_cells(make_counts(8))
    exact, half = CellPredictor(bundle).predict(cells).embeddings, service.served.predict(cells).embeddings
    assert not np.array_equal(exact, half)
    assert (exact * half).sum(axis=1).min() > 0.9


def test_a_model_that_differs_too_much_is_refused_with_the_figure(bundle: Any, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "tiny")
    with pytest.raises(
        ModelError, match=r"minimum cosine of embeddings 0\.99\d+ \(bound 1\).*precision: float32"
    ) as caught:
        _load(tmp_path / "tiny", min_cosine=1.0)
    assert 0.5 < caught.value.details["cosine"] < 1
