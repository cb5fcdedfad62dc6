"""Traces by OpenTelemetry, if its package is installed and the operator has configured an exporter (``OTEL_…``)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from cytoray.serving.edge.exchange import Exchange, Scope

HAS_OPENTELEMETRY = importlib.util.find_spec("opentelemetry") is not None


@contextlib.contextmanager
def traced(scope: Scope, exchange: Exchange) -> Iterator[None]:
    """Record the block as a span that continues the client's trace, and pass the trace on in the headers."""
    if not HAS_OPENTELEMETRY:
        yield
        return
    import opentelemetry.propagate as propagate
    import opentelemetry.trace as trace

    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    tracer = trace.get_tracer("cytoray")
    with tracer.start_as_current_span(
        f"{exchange.method[:16]} {exchange.route}", context=propagate.extract(carrier), kind=trace.SpanKind.SERVER
    ) as span:
        if span.is_recording():
            onward: dict[str, str] = {}
            propagate.inject(onward)
            kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in onward]
            scope["headers"] = kept + [(name.encode(), value.encode()) for name, value in onward.items()]
        yield
        if span.is_recording():
            span.set_attribute("http.response.status_code", exchange.status or 0)
            span.set_attribute("cytoray.request_id", exchange.request_id)
            span.set_attribute("cytoray.cells", exchange.cells)
