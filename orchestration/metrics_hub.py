"""The door to Prometheus: what a run measures, published at /metrics and kept as JSON lines."""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from core.errors import UserError
from core.metrics import DURATION_BUCKETS_S, METRICS, Kind, Metric

_HOST = "127.0.0.1"
"""Nobody outside this machine is served: /metrics asks for no password."""

# Else every counter and histogram has a second, undeclared series with the time that it was created at.
prometheus_client.disable_created_metrics()


class MetricsHub:
    """Every series of one run, in a registry of its own: other libraries' series stay out of it.

    A series is there from its first value on: a figure that is not known yet is absent, not zero.
    Only counters begin at zero. Raises ValueError for a name or labels that `core/metrics.py` does not declare.
    """

    def __init__(self, port: int | None = 0) -> None:
        """Serve on this port of localhost, 0 for a free one, None for none. Raises `UserError` if it is taken."""
        self._registry = CollectorRegistry()
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        self._server = None
        for metric in METRICS.values():
            if metric.kind == "counter":
                self._family(metric)
        if port is not None:
            try:
                self._server, self._thread = prometheus_client.start_http_server(
                    port, addr=_HOST, registry=self._registry
                )
            except OSError as error:
                raise UserError(
                    f"metrics.port = {port}: cannot be opened ({error.strerror}); set 0 for a free port"
                ) from error

    @property
    def url(self) -> str | None:
        """Where the metrics are served, if they are."""
        return f"http://{_HOST}:{self._server.server_port}/metrics" if self._server else None

    def set(self, name: str, value: float, **labels: str) -> None:
        """The last value of a gauge."""
        family = self._series(name, "gauge", labels)
        assert isinstance(family, Gauge)
        family.set(value)
