"""Rules, dashboards and runbooks fit together; promtool runs the unit tests of rules; planted mistakes are caught."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from planting import Mistake, load_mistakes

from .conftest import INFRA

pytestmark = pytest.mark.infra
ROOT = INFRA.parent
RULES = ("rules.yaml", "rules_jobs.yaml", "rules_ray.yaml")
DASHBOARDS = ("overview.json", "data.json", "train.json", "service.json")
RUNBOOK = re.compile(r"https://github\.com/cytoray/cytoray/blob/main/(docs/runbooks/\w+\.md)#([a-z]+)")
PARTS = ("**Means.** ", "**Look.** ", "**Do.** ", "**Tested by.** ")
MISTAKES = load_mistakes(Path(__file__).parent / "monitoring_mistakes.yaml")


def alerts_of(prometheus: Path) -> list[dict[str, Any]]:
    """All alerting rules."""
    files = [yaml.safe_load((prometheus / name).read_text()) for name in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if "alert" in rule]


def check_annotations(root: Path) -> None:
    """Every alert says what it means and what to do, and its runbook has all parts."""
    for alert in alerts_of(root / "infra" / "monitoring" / "prometheus"):
        name, notes = alert["alert"], alert["annotations"]
        assert alert["labels"]["severity"] in ("page", "ticket"), name
        assert notes.keys() == {"summary", "action", "runbook_url"}, name
        found = RUNBOOK.fullmatch(notes["runbook_url"])
        assert found is not None, notes["runbook_url"]
        assert found[2] == name.lower(), f"{name} links to the runbook of {found[2]}"
        sections = sections_of(root / found[1])
        assert found[2] in sections, f"{found[1]} has no section for {name}"
        for part in PARTS:
            assert part in sections[found[2]], f"{found[1]}, {name}: {part}"


def sections_of(page: Path) -> dict[str, str]:
    """Text of each section by the anchor that GitHub makes of its heading."""
    heading, *parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert heading.startswith("# Runbook: ")
    return {part.partition("\n")[0].strip().lower(): part for part in parts}


def check_runbooks(root: Path) -> None:
    """Every section belongs to an alert, and names tests that exist."""
    alerts = {alert["alert"].lower() for alert in alerts_of(root / "infra" / "monitoring" / "prometheus")}
    pages = sorted((root / "docs" / "runbooks").glob("*.md"))
    assert set().union(*(sections_of(page) for page in pages)) == alerts
    for page in pages:
        for name, text in sections_of(page).items():
            covered = text.partition(PARTS[-1])[2]
            tests = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", covered)
            assert tests or covered.startswith("None: "), f"{page.name}, {name} names no test"
            for file, function in tests:
                path = ROOT / file
                assert path.is_file(), f"{name}: {file}"
                assert not function or f"def {function}(" in path.read_text(), f"{name}: {file}::{function}"


def check_tests_of_rules(root: Path) -> None:
    """Each alert is tested both firing and silent."""
    folder = root / "infra" / "monitoring" / "prometheus"
    files = [yaml.safe_load((folder / name.replace(".yaml", "_test.yaml")).read_text()) for name in RULES]
    cases = [case for file in files for test in file["tests"] for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts_of(folder)}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def check_dashboards(root: Path) -> None:
    """Dashboards are JSON that Grafana reads: one data source, chosen by the reader; panels side by side."""
    seen: set[str] = set()
    for name in DASHBOARDS:
        dashboard = json.loads((root / "infra" / "monitoring" / "grafana" / name).read_text())
        assert dashboard["uid"] not in seen, f"{name}: the uid {dashboard['uid']} is taken"
        seen.add(dashboard["uid"])
        assert [entry["type"] for entry in dashboard["templating"]["list"]] == ["datasource"], name
        panels = dashboard["panels"]
        names = {panel["id"] for panel in panels} | {panel["title"] for panel in panels}
        assert len(names) == 2 * len(panels), f"{name}: ids or titles repeat"
        cells = [
            (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
            for panel in panels for x in range(panel["gridPos"]["w"]) for y in range(panel["gridPos"]["h"])
        ]  # fmt: skip
        assert len(cells) == len(set(cells)), f"{name}: panels overlap"
        assert max(x for x, _ in cells) < 24, name
        for panel in panels:
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert panel["targets"], panel["title"]
            wanted = {"type": "prometheus", "uid": "${datasource}"}
            assert all(source == wanted for source in sources), panel["title"]


def check_with(promtool: str) -> Callable[[Path], None]:
    """A check by promtool of rules, their unit tests, the configuration, and the expressions of the dashboards."""

    def check(root: Path) -> None:
        folder = root / "infra" / "monitoring" / "prometheus"
        (folder / "panels.yaml").write_text(yaml.safe_dump(_as_rules(root)))
        try:
            for words in (
                ["check", "rules", *RULES, "panels.yaml"],
                ["test", "rules", *(name.replace(".yaml", "_test.yaml") for name in RULES)],
                ["check", "config", "prometheus.yaml"],
            ):
                done = subprocess.run([promtool, *words], cwd=folder, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, done.stdout + done.stderr
        finally:
            (folder / "panels.yaml").unlink()

    return check


def _as_rules(root: Path) -> dict[str, Any]:
    """The expressions of all panels as recording rules, which promtool can parse."""
    rules = []
    for name in DASHBOARDS:
        for panel in json.loads((root / "infra" / "monitoring" / "grafana" / name).read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$__rate_interval", "5m")
                rules.append({"record": f"panel:{len(rules)}", "expr": text})
    return {"groups": [{"name": "panels", "rules": rules}]}


CHECKS: dict[str, Callable[[Path], None]] = {
    "annotations": check_annotations,
    "runbooks": check_runbooks,
    "tests": check_tests_of_rules,
    "dashboards": check_dashboards,
}


@pytest.mark.parametrize("name", CHECKS)
def test_rules_dashboards_and_runbooks_fit_together(name: str) -> None:
    CHECKS[name](ROOT)


def test_promtool_accepts_and_tests_them(promtool: str, tmp_path: Path) -> None:
    check_with(promtool)(_copy(tmp_path))


@pytest.mark.parametrize("mistake", [m for name in CHECKS for m in MISTAKES[name]], ids=str)
def test_planted_mistakes_are_caught(mistake: Mistake, tmp_path: Path) -> None:
    (name,) = [name for name in CHECKS if mistake in MISTAKES[name]]
    root = _copy(tmp_path)
    mistake.plant(root)
    with pytest.raises((AssertionError, json.JSONDecodeError), match=re.escape(mistake.caught)):
        CHECKS[name](root)


@pytest.mark.parametrize("mistake", MISTAKES["promtool"], ids=str)
def test_promtool_catches_planted_mistakes(mistake: Mistake, promtool: str, tmp_path: Path) -> None:
    root = _copy(tmp_path)
    mistake.plant(root)
    with pytest.raises(AssertionError, match=re.escape(mistake.caught)):
        check_with(promtool)(root)


def _copy(folder: Path) -> Path:
    shutil.copytree(INFRA / "monitoring", folder / "infra" / "monitoring")
    shutil.copytree(ROOT / "docs" / "runbooks", folder / "docs" / "runbooks")
    return folder
