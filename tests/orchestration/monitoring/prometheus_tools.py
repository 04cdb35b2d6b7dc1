"""Prometheus itself and its promtool, as tests use them; Debian's package `prometheus` has both.

`expressions_without_series` also serves to look at a real run: give it the Prometheus that follows it.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import promql_parser
import pytest
import yaml

from core.metrics.registry import METRICS
from orchestration.monitoring.dashboards import DASHBOARDS, panels_of
from orchestration.monitoring.queries import DERIVED, queries_of
from orchestration.render import rendered


def tool(name: str) -> str:
    """The path of a program. Without it the test is skipped, or fails where LEASH_REQUIRE_TOOLS is set."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed: apt-get install prometheus"
        if os.environ.get("LEASH_REQUIRE_TOOLS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def promtool(*arguments: str, stdin: str = "") -> str:
    """What `promtool` says, if it finds no fault."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@contextlib.contextmanager
def following(folder: Path) -> Iterator[str]:
    """Within, a Prometheus that follows the runs that say their address in `folder`/discovery; its URL.

    Its configuration is the generated one, but that it looks every second.
    """
    for path, text in rendered("monitoring").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "discovery").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://{address}"
        assert eventually(lambda: process.poll() is not None or is_ready(url))
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield url
    finally:
        process.kill()
        process.wait()


def eventually(holds: Callable[[], bool], timeout_s: float = 60) -> bool:
    """Whether it holds within the time, asked twice a second."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except URLError:
        return False


def query(url: str, expr: str) -> list[dict[str, Any]]:
    """The series that an expression gives now."""
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': expr})}", timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


def dashboard_expressions() -> list[str]:
    """Every expression that a dashboard draws, of the run `$run`."""
    panels = [panel for dashboard in DASHBOARDS for panel in panels_of(dashboard)]
    return list(dict.fromkeys(query.expr for panel in panels for query in queries_of(panel)))


def expressions_without_series(url: str, run: str) -> list[str]:
    """The expressions of the dashboards for which a Prometheus has nothing of this run.

    A run has no series of what its recipe does not use; `metrics_in` says which metrics an expression needs.
    """
    expressions = [expr.replace("$run", run) for expr in dashboard_expressions()]
    return [expr for expr in expressions if not query(url, expr)]


def names_in(expr: str) -> set[str]:
    """The series that an expression selects, as it names them. Raises if it does not parse."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None, f"{expr}: selects series of any name"
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return names


def metrics_in(expr: str) -> set[str]:
    """The metrics that an expression needs, also by way of derived series. `KeyError` if one is not declared."""
    derived = {derived.name: derived.expr for derived in DERIVED}
    metrics: set[str] = set()
    for name in names_in(expr):
        metrics |= metrics_in(derived[name]) if name in derived else {SERIES[name]}
    return metrics


SERIES = {
    name + suffix: name
    for name, metric in METRICS.items()
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
"""Every series that a run publishes -> its metric."""
