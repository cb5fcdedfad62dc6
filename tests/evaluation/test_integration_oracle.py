"""Our metrics of integration equal those of scib-metrics 0.5.10 to 1e-3, on seeded embeddings and on real cells.

`make_scib_numbers.py` has computed the numbers; with scib-metrics installed they are computed again.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from integration_cases import PBMC, SYNTHETIC, Case, pbmc

from cytoray.evaluation.integration import IntegrationScores, score_integration

NUMBERS = json.loads(Path(__file__).with_name("scib_numbers.json").read_text())["numbers"]
TOLERANCE = 1e-3


@pytest.mark.parametrize("name", SYNTHETIC)
def test_metrics_equal_the_stored_numbers_of_scib_metrics(name: str):
    assert_equal(score(SYNTHETIC[name]()), NUMBERS[name])


@pytest.mark.slow
@pytest.mark.skipif(not PBMC.exists(), reason=f"{PBMC} is absent")
@pytest.mark.skipif("pbmc" not in NUMBERS, reason="no stored numbers of real cells")
def test_metrics_of_real_cells_equal_the_stored_numbers_of_scib_metrics():
    assert_equal(score(pbmc()), NUMBERS["pbmc"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jax, numba and scib-metrics
@pytest.mark.parametrize("name", SYNTHETIC)
def test_metrics_equal_scib_metrics(name: str):
    case = SYNTHETIC[name]()
    assert_equal(score(case), oracle().scib_numbers(case))


def score(case: Case) -> IntegrationScores:
    return score_integration(case.embedding, batches=case.batches, labels=case.labels, before=case.before)


def assert_equal(scores: IntegrationScores, expected: dict[str, float]) -> None:
    ours = {name: getattr(scores, name) for name in expected}
    assert len(expected) == 13
    assert ours == pytest.approx(expected, abs=TOLERANCE)


def oracle() -> ModuleType:
    """Return make_scib_numbers.py as a module."""
    pytest.importorskip("scib_metrics", reason="scib-metrics is not installed (it is not among our dependencies)")
    spec = importlib.util.spec_from_file_location("make_scib_numbers", Path(__file__).with_name("make_scib_numbers.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
