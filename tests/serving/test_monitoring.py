"""Dashboards and rules of infra/monitoring: valid, about metrics that the service exports, and tested by promtool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
RULES = FOLDER / "prometheus" / "rules.yaml"
DASHBOARD = FOLDER / "grafana" / "service.json"
NAME = re.compile(r"cytoray[a-z0-9_:]*[a-z0-9]")


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _used() -> set[str]:
    """The names of metrics in all expressions."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [rule["expr"] for rule in _rules()]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    return {
        name
        for text in expressions
        for name in NAME.findall(re.sub(r'"[^"]*"|by \([^)]*\)', "", text))  # neither values nor names of labels
    }


def test_rules_and_dashboard_are_about_metrics_that_exist(http: Any, make_counts: Any, as_request: Any) -> None:
    http.post("/v1/embed", json=as_request(make_counts(2)))
    http.post("/v1/embed", json={})
    families = list(text_string_to_metric_families(http.get("/metrics").text))
    exported = {sample.name for family in families for sample in family.samples}
    exported |= {f"{family.name}_total" for family in families if family.type == "counter"}  # none counted yet
    exported |= {rule["record"] for rule in _rules() if "record" in rule}
    assert len(_used()) > 15
    assert _used() - exported == set()


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    alerts = [rule for rule in _rules() if "alert" in rule]
    assert len(alerts) >= 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "action", "runbook_url"}, alert["alert"]
    tests = yaml.safe_load((FOLDER / "prometheus" / "rules_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_the_dashboard_is_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: `make check-monitoring` fetches it")
    for words in (
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules_test.yaml"],
        ["check", "config", "prometheus.yaml"],
    ):
        done = subprocess.run([promtool, *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
