"""The door to Prometheus: what a run and its workers measure, published at /metrics."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric as Samples
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from core.errors import UserError
from core.http_server import url_of
from core.metrics.contract import Metric, series_of
from core.metrics.registry import METRICS
from core.worker_report import WorkerReport

Family = TypeVar("Family", Counter, Gauge, Histogram)

LOCALHOST = "127.0.0.1"
"""Where nobody outside this machine is served: /metrics asks for no password."""

# Else every counter and histogram gets a second, undeclared series with the time it was created at.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class MetricsHub:
    """Every series of one run, in a registry of its own: other libraries' series stay out of it.

    A figure that is not known yet, or no longer, is absent, not zero. Only counters begin at zero. `ValueError` for
    a name or labels that `core/metrics/` does not declare.
    """

    def __init__(self, port: int | None = 0, host: str = LOCALHOST) -> None:
        """Serve on this port and address, 0 for a free port, None for none. `UserError` if it is taken."""
        self._host = host
        self._registry = CollectorRegistry()
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        self._totals: dict[tuple[str, ...], float] = {}
        """What counters that somebody else counts have said last."""
        self._of_step: set[tuple[str, tuple[str, ...]]] = set()
        """Gauges that the last step's record had, with their labels; not those of workers, which `forget` drops."""
        self._engine_series = _EngineSeries()
        self._registry.register(self._engine_series)
        self._server = None
        for metric in METRICS.values():
            if metric.kind == "counter":
                self._families[metric.name] = self._create(metric)
        if port is not None:
            try:
                self._server, self._thread = prometheus_client.start_http_server(
                    port, addr=host, registry=self._registry
                )
            except OSError as error:
                raise UserError(
                    f"metrics.port = {port}: cannot be opened on {host} ({error.strerror}); set 0 for a free port"
                ) from error

    @property
    def url(self) -> str | None:
        """Where the series are served, if they are."""
        return f"{url_of(self._host, self._server.server_port)}/metrics" if self._server else None

    def set(self, name: str, value: float, **labels: str) -> None:
        """The last value of a gauge."""
        self._series(Gauge, name, labels).set(value)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._series(Counter, name, labels).inc(value)

    def follow(self, name: str, total: float, **labels: str) -> None:
        """Bring a counter to what somebody else has counted. One who counts less than before began anew."""
        source = (name, *labels.values())
        before = self._totals.get(source, 0.0)
        self.add(name, total - before if total >= before else total, **labels)
        self._totals[source] = total

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more observation of a histogram."""
        self._series(Histogram, name, labels).observe(value)

    def publish(self, record: Mapping[str, Any]) -> None:
        """Every gauge that a step's record gives a value to. What the step before had and this one has not would
        stay as it was for ever, and is dropped."""
        of_step = set()
        for metric, labels, value in series_of(record, METRICS):
            if metric.kind == "gauge":  # who counts adds to the counters
                self.set(metric.name, value, **labels)
                if "worker" not in labels:
                    of_step.add((metric.name, tuple(labels.values())))
        for name, values in self._of_step - of_step:
            self._drop(name, values)
        self._of_step = of_step

    def worker(self, worker: str, report: WorkerReport) -> None:
        """What a worker says of itself."""
        for name, value in report.gauges.items():
            self.set(name, value, worker=worker)
        for name, total in report.totals.items():
            self.follow(name, total, worker=worker)
        if report.engine_series:
            self._engine_series.texts[worker] = report.engine_series

    def forget(self, worker: str) -> None:
        """Drop the gauges of a worker that is gone; what its counters have counted stays counted."""
        self._engine_series.texts.pop(worker, None)
        for source in [source for source in self._totals if source[1:] == (worker,)]:
            del self._totals[source]  # its successor counts from zero
        for metric in METRICS.values():
            family = self._families.get(metric.name)
            if metric.kind == "gauge" and metric.labels == ("worker",) and family is not None:
                with contextlib.suppress(KeyError):
                    family.remove(worker)

    def close(self) -> None:
        """Stop serving. May be called more than once."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _drop(self, name: str, label_values: tuple[str, ...]) -> None:
        if label_values:
            self._families[name].remove(*label_values)
        else:
            self._registry.unregister(self._families.pop(name))

    def _series(self, family_type: type[Family], name: str, labels: Mapping[str, str]) -> Family:
        metric = METRICS.get(name)
        if metric is None:
            close = difflib.get_close_matches(name, METRICS, n=1)
            raise ValueError(f"{name}: not declared in core/metrics/" + f"; {close[0]} is" * bool(close))
        if labels.keys() != set(metric.labels):
            raise ValueError(f"{name}: declared with labels {metric.labels}, not {tuple(labels)}")
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = self._create(metric)
        if not isinstance(family, family_type):
            raise ValueError(f"{name}: declared as a {metric.kind}, not as a {family_type.__name__.lower()}")
        return family.labels(**labels) if labels else family

    def _create(self, metric: Metric) -> Counter | Gauge | Histogram:
        arguments = (metric.name, metric.help, metric.labels)
        match metric.kind:
            case "counter":
                return Counter(*arguments, registry=self._registry)
            case "gauge":
                return Gauge(*arguments, registry=self._registry)
            case "histogram":
                return Histogram(*arguments, buckets=metric.buckets, registry=self._registry)


class _EngineSeries(Collector):
    """vLLM's own series of every engine, with one label more: the worker."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def collect(self) -> Iterator[Samples]:
        families: dict[str, Samples] = {}
        for worker, text in list(self.texts.items()):
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Samples(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.add_sample(sample.name, sample.labels | {"worker": worker}, sample.value)
        yield from families.values()
