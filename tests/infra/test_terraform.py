"""infra/terraform: formatted, valid, and as asserted on a mocked provider; each planted mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from planting import load_mistakes, missed

from .conftest import INFRA, Terraform

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]
MISTAKES = load_mistakes(Path(__file__).parent / "terraform_mistakes.yaml")


def test_files_are_formatted_and_valid(terraform: Terraform) -> None:
    assert terraform.run(INFRA / "terraform", "fmt", "-check", "-recursive", "-diff").stdout == ""
    done = terraform.run(terraform.clean, "validate")
    assert done.returncode == 0, done.stdout


def test_what_is_asserted_about_it_holds(terraform: Terraform) -> None:
    done = terraform.run(terraform.clean, "test")
    assert done.returncode == 0, done.stdout
    assert re.search(r"Success! 12 passed, 0 failed", done.stdout), done.stdout


@pytest.mark.parametrize("kind", ["schema", "names"])
def test_invalid_files_are_refused(terraform: Terraform, tmp_path: Path, kind: str) -> None:
    folder, mistakes = terraform.copy(tmp_path / "copy"), MISTAKES[kind]
    for mistake in mistakes:
        mistake.plant(folder)
    done = terraform.run(folder, "validate")
    assert done.returncode != 0
    assert missed(mistakes, done.stdout) == [], done.stdout


def test_insecure_and_wrong_files_fail_their_assertions(terraform: Terraform, tmp_path: Path) -> None:
    """All in one run: most of its time is Terraform's start and one plan for each `run`, not the number of mistakes."""
    folder, mistakes = terraform.copy(tmp_path / "copy"), [*MISTAKES["security"], *MISTAKES["shape"]]
    for mistake in mistakes:
        mistake.plant(folder)
    done = terraform.run(folder, "test")
    assert done.returncode != 0
    assert missed(mistakes, done.stdout) == [], done.stdout


def test_no_secret_and_no_lock_of_a_mirror_is_kept_here() -> None:
    files = [
        path for path in (INFRA / "terraform").rglob("*") if path.is_file() and ".terraform/" not in path.as_posix()
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert not re.search(r"AKIA[0-9A-Z]{16}|(?<!manage_master_user_)password\s*=\s*\"", text)
    assert "secret_string " not in text


def test_prices_are_those_of_the_plans() -> None:
    """The cost table and `cytoray jobs submit --dry-run` reckon with the same prices."""
    planned = yaml.safe_load((INFRA.parent / "configs" / "prices.yaml").read_text())
    table = (INFRA / "terraform" / "cost.tf").read_text()
    prices = {
        name: float(price)
        for name, price in re.findall(r'"([a-z0-9]+\.[0-9a-z]+)"\s+= ([0-9.]+)$', table, re.MULTILINE)
    }
    assert {entry["name"]: prices.get(entry["name"]) for entry in planned["instances"]} == {
        entry["name"]: entry["hourly"] for entry in planned["instances"]
    }
    assert f'as_of  = "{planned["as_of"]}"' in table
