"""docs/sizing.md is what its constants and prices give, and its formulas are those that it states."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest
from doc_blocks import ROOT

from cytoray.config import load_config


@pytest.fixture(scope="module")
def sizing() -> ModuleType:
    """The script, imported by its path."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "scripts" / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module  # its dataclass looks itself up there
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def test_the_page_is_what_its_constants_give(sizing: ModuleType):
    assert (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8") == sizing.page()


def test_hours_and_costs_follow_from_rates_and_prices(sizing: ModuleType):
    prices = load_config(sizing.Prices, ROOT / "configs" / "prices.yaml")
    constants = load_config(sizing.Constants, ROOT / "benchmarks" / "sizing.yaml")
    made = sizing.Sizing(constants, prices)
    (price,) = [one.hourly for one in prices.instances if one.name == "p5.48xlarge"]
    two = constants.gpu_rates["train_two_passes"].value
    work = made.pretrain(33_000_000, "train_two_passes", "p5.48xlarge")
    assert work.hours == pytest.approx(33e6 * 6 / (two * 8 * 0.8) / 3600)
    assert work.cost == pytest.approx(work.hours * price)
    on_a100 = made.pretrain(33_000_000, "train_two_passes", "p4d.24xlarge")
    assert on_a100.hours / work.hours == pytest.approx(989 / 312)  # the ratio of their peaks
    ingest = made.on_cores(1_000_000, "ingest", "m6i.4xlarge")
    assert ingest.hours * 3600 * constants.cpu_rates["ingest"].value * 16 * 0.8 == pytest.approx(1e6)
    gets, puts, cost = made.requests(33_000_000)
    assert cost == pytest.approx(gets * 0.4e-6 + puts * 5e-6)


def test_the_page_names_every_size_and_its_sources(sizing: ModuleType):
    text = sizing.page()
    assert {"1 M", "10 M", "33 M", "100 M"} <= set(re.findall(r"^\| (\d+ M) \|", text, re.MULTILINE))
    for script in set(re.findall(r"benchmarks/\w+\.py", text)):
        assert (ROOT / script).is_file(), script
