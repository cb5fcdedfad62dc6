"""Kill each protocol at each of its failpoints: nothing torn is visible, doing it again ends as if it never happened.

Every failpoint in the source is here, or in the test that ``ELSEWHERE`` names.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
import torch
from crash_driver import Driver, Scenario, find_scenarios, started_driver
from training_process import STEPS, assert_equal, start_training

import cytoray
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.failpoints import ONCE_VARIABLE, VARIABLE
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking.server import connect

TESTS = Path(__file__).parents[1]
CALL = re.compile(r'failpoint\(\s*"(\w+\.\w+)"\s*\)')
POINTS = sorted(
    {name for file in Path(cytoray.__file__).parent.rglob("*.py") for name in CALL.findall(file.read_text())}
)
SCENARIOS: dict[str, Scenario] = find_scenarios()
OF_POINT = {
    name: next((key for key, one in SCENARIOS.items() if name.split(".")[0] in one.points), "") for name in POINTS
}
MATRIX = [name for name in POINTS if OF_POINT[name]]
TRAINING = ["train.after_step", "train.before_done", "train.after_done"]
ELSEWHERE = {
    "assess": "faults/test_assessments.py",
    "networks": "faults/test_networks.py",
    "reference": "tasks/test_mapping.py",
    "offline": "serving/jobs/test_killed_jobs.py",
    "jobs": "serving/jobs/test_killed_jobs.py",
    "tracking": "tracking/test_shipping.py",
}


def test_every_failpoint_is_killed_here_or_in_a_test_that_names_it():
    assert len(MATRIX) + len(TRAINING) >= 40
    for name in set(POINTS) - set(MATRIX) - set(TRAINING):
        protocol = name.partition(".")[0]
        assert protocol in ELSEWHERE, f"no test kills {name}"
        assert name in (TESTS / ELSEWHERE[protocol]).read_text(), f"{ELSEWHERE[protocol]} does not kill {name}"
    assert {name for name in POINTS if name.startswith("train.")} == set(TRAINING)
    for scenario in SCENARIOS.values():
        assert any(OF_POINT[name] and name.split(".")[0] in scenario.points for name in POINTS)


def test_no_failpoint_has_a_name_that_is_not_a_literal():
    calls = re.compile(r'failpoint\((?!name: str\))(?!\s*"\w+\.\w+"\s*\))')
    source = Path(cytoray.__file__).parent
    assert [str(path) for path in source.rglob("*.py") if calls.search(path.read_text())] == []


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all scenarios: files of cells, two bundles that annotate them, and an empty database of MLflow."""
    folder = tmp_path_factory.mktemp("shared")
    settings = {"num_genes": 300, "mean_genes": 60.0, "num_types": 3}
    synthesise(folder / "sources", SynthConfig(num_cells=600, num_files=3, num_donors=6, **settings))
    synthesise(folder / "held-out", SynthConfig(num_cells=60, num_files=1, num_donors=2, **settings))
    labels = tuple(sorted(set(ad.read_h5ad(folder / "held-out" / "part-000.h5ad").obs["cell_type"])))
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1, num_labels=len(labels)
    )
    for number in (1, 2):
        torch.manual_seed(number)
        model = ScGPT(shape, pad_id=vocabulary.pad_id)
        bundle = ModelBundle(model, vocabulary, TokenizerConfig(max_length=65), labels, {"trained_by": "test"})
        save_bundle(bundle, folder / f"bundle-{number}")
    connect(f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture(scope="session")
def driver(shared: Path) -> Iterator[Driver]:
    """Does scenarios, each in a process of its own."""
    with started_driver(shared) as driver:
        yield driver


@pytest.fixture(scope="session")
def clean(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The undisturbed result of a scenario, and how often it passes each point; each is computed once."""
    known: dict[str, dict[str, Any]] = {}

    def of(scenario: str) -> dict[str, Any]:
        if scenario not in known:
            folder = tmp_path_factory.mktemp("clean") / scenario
            known[scenario] = driver.result(scenario, folder, **{VARIABLE: "no.such_point=raise"})
        return known[scenario]

    return of


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", MATRIX)
def test_killed_at_a_failpoint_and_done_again(
    point: str, clean: Callable[[str], dict[str, Any]], driver: Driver, tmp_path: Path
):
    scenario, folder, once = OF_POINT[point], tmp_path / "work", tmp_path / "once"
    expected = clean(scenario)
    # The last of the hits, when earlier versions are there; those of a pipeline's jobs are in other processes.
    nth = expected["hits"].get(point, 1)
    nth = nth // 2 + 1 if scenario == "ingest" else nth
    once.mkdir()
    killed = driver.run(scenario, folder, **{VARIABLE: f"{point}=kill@{nth}", ONCE_VARIABLE: str(once)})
    assert [path.name for path in once.iterdir()] == [point], killed.log[-4000:]
    assert killed.code in (-signal.SIGKILL, 1), "the process itself, or a pipeline whose job was killed"
    assert killed.code == -signal.SIGKILL or "was killed by signal 9" in killed.log
    found = driver.result(scenario, folder, "recover")
    assert found["result"] == expected["result"]


@pytest.fixture(scope="session")
def trained(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    driver.result("ingest", folder)
    training = start_training(folder / "store", folder / "driver", changes={}, nodes=0)
    try:
        assert training.result()["step"] == STEPS
    finally:
        training.stop_at_once()
    return folder / "store"


@pytest.mark.crash
@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", TRAINING)
def test_a_training_killed_at_a_failpoint_and_run_again(point: str, trained: Path, driver: Driver, tmp_path: Path):
    """``train.after_step`` kills a rank, which is replaced; the others kill the driver."""
    driver.result("ingest", tmp_path / "work")
    store = str(tmp_path / "work" / "store")
    nth = 6 if point == "train.after_step" else 1
    training = start_training(
        store, tmp_path / "driver", plan=f"{point}=kill@{nth}", once=tmp_path / "once", changes={}, nodes=0
    )
    try:
        if training.process.wait(600) != 0:
            assert training.process.returncode == -signal.SIGKILL, training.log[-3000:]
    finally:
        training.stop_at_once()
    assert [path.name for path in (tmp_path / "once").iterdir()] == [point]
    again = start_training(store, tmp_path / "again", changes={}, nodes=0)
    try:
        assert again.result()["step"] == STEPS
    finally:
        again.stop_at_once()
    assert_equal(store, trained)
