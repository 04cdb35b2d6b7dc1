"""A Ray cluster of several nodes on this machine, each a process group of its own, that asks for a token."""

import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.end_to_end.leash_process import BIN, LeashProcess

START_S = 90
OWN_MEMORY = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=1g tmpfs /dev/shm && exec "$@"',
    "node",
)
"""A command run with these before it sees another /dev/shm than everybody else."""


class RayCluster:
    """A head, and nodes that come and are killed.

    with RayCluster(logs, num_cpus=3) as cluster:
        node = cluster.add_node(num_cpus=1)
        leash("train", ..., "--address", cluster.address, environment=cluster.settings)
        node.kill()
    """

    def __init__(self, logs: Path, *, num_cpus: int) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="leash-ray-")  # short: sockets are in it
        self._logs = logs
        token = Path(self._home.name) / "token"
        token.write_text("0123456789abcdef" * 4, encoding="utf-8")
        token.chmod(0o600)
        self.port, self._dashboard = free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{self._dashboard}"
        self.settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": self._home.name,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        """Environment of whoever may use it."""
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: list[LeashProcess] = []
        self._num_cpus = num_cpus

    def __enter__(self) -> "RayCluster":
        head = self._start(
            "--head",
            f"--port={self.port}",
            f"--dashboard-port={self._dashboard}",
            "--dashboard-host=127.0.0.1",
            f"--num-cpus={self._num_cpus}",
        )
        head.wait_until(lambda: answers(self._dashboard) and answers(self.port), START_S)
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self._home.cleanup()

    def add_node(
        self, *, num_cpus: int, own_memory: bool = False, environment: Mapping[str, str] | None = None
    ) -> LeashProcess:
        """One more node, if need be with its own /dev/shm, as another machine has. Returns once it has joined."""
        node = self._start(
            f"--address={self.address}",
            f"--num-cpus={num_cpus}",
            wrapper=OWN_MEMORY if own_memory else (),
            environment=environment,
        )
        node.wait_until(lambda: "Ray runtime started" in node.output, START_S)
        return node

    def _start(
        self, *options: str, wrapper: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> LeashProcess:
        # Ray's own choice is taken where another Ray runs, and without this port a node takes no jobs.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        ray = [str(BIN / "ray"), "start", "--block", "--object-store-memory=200000000", agent]
        command = [*wrapper, *ray, *options]
        log = self._logs / f"node-{len(self.nodes)}.log"
        self.nodes.append(LeashProcess(command, log, environment={**self.settings, **(environment or {})}))
        return self.nodes[-1]


def may_have_own_memory() -> bool:
    """Whether this user may give a process a /dev/shm of its own."""
    return subprocess.run([*OWN_MEMORY, "true"], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
