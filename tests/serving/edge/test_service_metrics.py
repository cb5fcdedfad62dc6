"""The service behind its edge: /metrics, headers of answers, and what limits of the application report."""

from __future__ import annotations

import pickle
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cytoray.serving.edge.metrics import EdgeMetrics, collect, render


def test_metrics_of_the_service(http: Any, make_counts: Any, as_request: Any) -> None:
    assert http.post("/v1/embed", json=as_request(make_counts(5))).headers["x-cells"] == "5"
    assert http.post("/v1/embed", json={}).headers["x-problem-code"] == "malformed_payload"
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *(sample.labels.get(label, "") for label in ("route", "status", "code"))): sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["cytoray_requests_total", "/v1/embed", "200", ""].value == 1
    assert samples["cytoray_requests_total", "/v1/embed", "400", ""].value == 1
    assert samples["cytoray_rejections_total", "", "", "malformed_payload"].value == 1
    assert samples["cytoray_cells_total", "/v1/embed", "", ""].value == 5
    assert samples["cytoray_request_seconds_count", "/v1/embed", "", ""].value == 2
    assert samples["cytoray_requests_in_flight", "", "", ""].value == 1  # this scrape
    info = samples["cytoray_build_info", "", "", ""].labels
    assert (info["name"], info["version"], info["process"]) == ("tiny", "7", "service")


def test_figures_of_several_processes_stay_apart_and_cross_processes() -> None:
    processes = []
    for name, count in (("a", 2), ("b", 3)):
        metrics = EdgeMetrics(CollectorRegistry())
        metrics.cells.labels("/v1/embed", "tiny").inc(count)
        processes.append(pickle.loads(pickle.dumps(collect(metrics.registry, process=name))))  # noqa: S301
    text = render(processes).decode()
    assert 'cytoray_cells_total{model="tiny",process="a",route="/v1/embed"} 2.0' in text
    assert 'cytoray_cells_total{model="tiny",process="b",route="/v1/embed"} 3.0' in text
    assert text.count("# TYPE cytoray_cells_total counter") == 1
