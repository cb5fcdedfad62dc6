"""Traces continue the client's and are passed on, if OpenTelemetry is installed and exports."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
import opentelemetry.trace as trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_is_a_span_of_the_client_s_trace(behind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"traceparent")
        headers = [(b"content-type", b"application/json"), (b"x-cells", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    behind(app).ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "abc"})
    (span,) = spans.get_finished_spans()
    assert (span.name, f"{span.context.trace_id:032x}") == ("POST /v1/embed", TRACE)
    assert f"{span.parent.span_id:016x}" == PARENT
    assert seen == [f"00-{TRACE}-{span.context.span_id:016x}-01".encode()]
    expected = {"http.response.status_code": 200, "cytoray.cells": 7, "cytoray.request_id": "abc"}
    assert dict(span.attributes) == expected
    provider.shutdown()
