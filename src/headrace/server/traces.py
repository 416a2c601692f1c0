"""OpenTelemetry, where it is configured: OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` installed."""

from __future__ import annotations

import os

from opentelemetry import trace

tracer = trace.get_tracer("headrace")


def set_up(role: str) -> bool:
    """Has spans sent where the environment says; whether it says so. Raises ImportError without the extra."""
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return False
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"headrace-{role}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True
