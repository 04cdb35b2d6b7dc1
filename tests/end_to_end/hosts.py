"""Hosts as a cluster has them, on this machine: each with its own address, name, localhost and /dev/shm.

Linux namespaces, joined by a bridge in a network namespace of its own: the machine's own network stays as it is.
Everything goes with the processes that hold it.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.end_to_end.leash_process import REPOSITORY

TOOLS = ("ip", "nsenter", "unshare")
HOLD = "echo up && exec sleep 1h"
"""What a process does whose namespaces others enter. It ends by itself should the tests be killed."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process may run."""

    address: str
    enter: tuple[str, ...] = ()
    """A command with these before it runs there."""


THIS_MACHINE = Host("127.0.0.1")


class Hosts:
    """Hosts that reach each other by their addresses, and nobody else.

    with Hosts() as hosts:
        host = hosts.add()
        subprocess.run([*host.enter, "hostname"])
    """

    def __enter__(self) -> "Hosts":
        self._holders: list[subprocess.Popen[str]] = []
        bridge = "ip link add bridge type bridge && ip link set bridge up"
        self._switch = self._hold("--net", script=f"{bridge} && {HOLD}")
        return self

    def __exit__(self, *error: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()

    def add(self, own_folders: Sequence[str] = ()) -> Host:
        """One more. `own_folders`: empty ones there, which other hosts do not see, beside /dev/shm."""
        number = len(self._holders)
        mounts = [f"mount -t tmpfs -o size=1g tmpfs {folder}" for folder in ("/dev/shm", *own_folders)]
        script = " && ".join([f"hostname leash-host-{number}", *mounts, HOLD])
        pid = self._hold("--mount", "--net", "--uts", script=script)
        switch = ("nsenter", f"--target={self._switch}", "--net")
        host = Host(f"10.77.0.{number}", ("nsenter", f"--target={pid}", "--mount", "--net", "--uts", "--wd"))
        _ip(*switch, order=f"link add port-{number} type veth peer eth0 netns {pid}")
        _ip(*switch, order=f"link set port-{number} master bridge up")
        _ip(*host.enter, order=f"address add {host.address}/24 dev eth0")
        _ip(*host.enter, order="link set lo up")
        _ip(*host.enter, order="link set eth0 up")
        _ip(*host.enter, order="route add default dev eth0")  # Ray asks it for the host's address
        return host

    def _hold(self, *namespaces: str, script: str) -> int:
        """Id of a process in new namespaces."""
        command = ["unshare", *namespaces, "sh", "-c", script]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n", f"{script}: its reason is on standard error"
        return holder.pid


def require_hosts() -> None:
    """Skips the test where hosts cannot be made. Where LEASH_REQUIRE_TOOLS is set, missing programs fail it; the
    right to make namespaces cannot be installed."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        reason = f"{', '.join(missing)} not installed: apt-get install iproute2 util-linux"
        if os.environ.get("LEASH_REQUIRE_TOOLS"):
            pytest.fail(reason)
        pytest.skip(reason)
    trial = ["unshare", "--mount", "--net", "--uts", "true"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"hosts need namespaces of their own, as root has: {tried.stderr.strip()}")


def _ip(*enter: str, order: str) -> None:
    subprocess.run([*enter, "ip", *order.split()], check=True)
