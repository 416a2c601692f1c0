"""What Prometheus reads: requests as this process counts them, jobs and workers as the database has them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.memory.sizes import parse_bytes
from headrace.server.settings import Settings
from headrace.server.store import Store


class Metrics:
    """The metrics of one API process."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(store, settings))
        self._requests = Counter(
            "headrace_requests", "HTTP requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "headrace_request_seconds",
            "Time to the first byte of an answer",
            ["route"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5, 30),
            registry=self._registry,
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Jobs(Collector):
    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("headrace_jobs", "Jobs that are kept, by model and state", labels=["model", "state"])
        for (model, state), count in self._store.counts().items():
            jobs.add_metric([model, state], count)
        yield jobs
        seconds = CounterMetricFamily("headrace_stage_seconds", "Time by stage", labels=["worker", "stage"])
        ended = CounterMetricFamily("headrace_pictures", "Pictures by how they ended", labels=["worker", "end"])
        memory = GaugeMetricFamily("headrace_worker_bytes", "Memory of a worker", labels=["worker", "kind"])
        workers = self._store.workers(self._settings.lease_seconds)
        for name, status in workers.items():
            for stage in ("generate", "deliver"):
                seconds.add_metric([name, stage], status[stage])
            ended.add_metric([name, "made"], status["pictures"])
            ended.add_metric([name, "error"], status["errors"])
            for kind in ("held", "resident", "peak"):
                memory.add_metric([name, kind], status[f"{kind}_bytes"])
            if self._settings.memory is not None:
                memory.add_metric([name, "budget"], parse_bytes(self._settings.memory))
        yield from (seconds, ended, memory)
        yield GaugeMetricFamily("headrace_workers", "Workers that give signs of life", value=len(workers))
