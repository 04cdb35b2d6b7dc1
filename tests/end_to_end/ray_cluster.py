"""A Ray cluster of several nodes on this machine, each a process group of its own, that asks for a token."""

import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.end_to_end.hosts import THIS_MACHINE, Host, Hosts
from tests.end_to_end.leash_process import BIN, LeashProcess

START_S = 90
RAY_GAVE_UP = "timed out during startup"


class RayCluster:
    """A head, and nodes that come and are killed.

    with RayCluster(logs, num_cpus=3) as cluster:
        node = cluster.add_node(num_cpus=1)
        leash("train", ..., "--address", cluster.address, environment=cluster.settings)
        node.kill()
    """

    def __init__(
        self,
        logs: Path,
        *,
        num_cpus: int,
        hosts: Hosts | None = None,
        head_options: Sequence[str] = (),
        head_environment: Mapping[str, str] | None = None,
    ) -> None:
        """`hosts`: every node gets one of its own. Left out, they share this machine's address and memory."""
        self._home = tempfile.TemporaryDirectory(prefix="leash-ray-")  # short: sockets are in it
        self._logs = logs
        self._hosts = hosts
        session = Path(self._home.name) / "ray"
        session.mkdir()
        self._own_folders = (str(session),)
        self.head = self._host()
        """Where the first node is, and drivers start."""
        token = Path(self._home.name) / "token"
        token.write_text("0123456789abcdef" * 4, encoding="utf-8")
        token.chmod(0o600)
        self.port, self._dashboard = free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{self._dashboard}"
        self.settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(session),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        """Environment of whoever may use it."""
        self.address = f"{self.head.address}:{self.port}"
        self.nodes: list[LeashProcess] = []
        self._head_options = (f"--num-cpus={num_cpus}", *head_options)
        self._head_environment = head_environment

    def __enter__(self) -> "RayCluster":
        head = self._start(
            self.head,
            "--head",
            f"--port={self.port}",
            f"--dashboard-port={self._dashboard}",
            "--dashboard-host=127.0.0.1",
            *self._head_options,
            environment=self._head_environment,
        )
        head.wait_until(lambda: "Ray runtime started" in head.output, START_S)
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self._home.cleanup()

    def add_node(self, *, num_cpus: int, environment: Mapping[str, str] | None = None) -> LeashProcess:
        """One more node, with `environment` beside its own. Returns once it has joined. Ray itself gives a node
        30 s to start, which a busy machine may exceed: then it is started again, once."""
        try:
            return self._joined(num_cpus, environment)
        except AssertionError:
            if RAY_GAVE_UP not in self.nodes[-1].output:
                raise
            self.nodes.pop().kill()
            return self._joined(num_cpus, environment)

    def _joined(self, num_cpus: int, environment: Mapping[str, str] | None) -> LeashProcess:
        options = (f"--address={self.address}", f"--num-cpus={num_cpus}")
        node = self._start(self._host(), *options, environment=environment)
        node.wait_until(lambda: "Ray runtime started" in node.output, START_S)
        return node

    def _host(self) -> Host:
        return self._hosts.add(self._own_folders) if self._hosts else THIS_MACHINE

    def _start(self, host: Host, *options: str, environment: Mapping[str, str] | None = None) -> LeashProcess:
        # Ray's own choice is taken where another Ray runs, and without this port a node takes no jobs.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        ray = [str(BIN / "ray"), "start", "--block", "--object-store-memory=200000000", agent]
        log = self._logs / f"node-{len(self.nodes)}.log"
        settings = {**self.settings, **(environment or {})}
        self.nodes.append(LeashProcess([*host.enter, *ray, *options], log, environment=settings))
        return self.nodes[-1]


def with_other_torch(folder: Path) -> dict[str, str]:
    """Environment of a node that believes to have torch 0.0.1."""
    fake = folder / "packages" / "torch-0.0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")])}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
