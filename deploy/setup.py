"""Everything that Leash needs on a fresh machine: `.venv` from the hash-pinned lock, the model, the data.

    python3.11 deploy/setup.py      (what `make setup` runs; standard library only)

Each step looks first whether it is done, so a second run takes less than a second, and one that was cut
off is continued. A stamp in `.venv` is written after the step that it stands for, never before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "requirements-cpu.lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP_LOG = VENV / "setup-pip.log"

INSTALLING = VENV / ".leash-installing"
"""Exists while pip writes packages: found at the start, it says that some of them may be half there."""
PACKAGES_STAMP = VENV / ".leash-packages"
PROJECT_STAMP = VENV / ".leash-project"

PYTHON_VERSION = (3, 11)
"""The one that the lock's binary packages are built for."""
NEEDED_BYTES = 8_000_000_000
"""4 GB of installed packages, 2 GB of downloads, 1 GB of model, and room for a run."""

UNREACHABLE = re.compile(
    r"Max retries exceeded|Retrying \(|NewConnectionError|NameResolutionError|ConnectTimeoutError"
    r"|Read timed out|ProxyError|Network is unreachable"
)
MISSING = re.compile(r"No matching distribution found for (\S+)")


class SetupError(Exception):
    """What is wrong and what to do, in one sentence."""


def main() -> int:
    """Do what is missing; 2 and one sentence on standard error when that cannot be done."""
    try:
        check_machine()
        with one_at_a_time():
            make_venv()
            install_packages()
            install_project()
            return subprocess.run(
                [str(PYTHON), "-m", "orchestration.assets"], cwd=ROOT, check=False
            ).returncode
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup was interrupted; run it again to go on", file=sys.stderr)
        return 130


def check_machine() -> None:
    """Raise `SetupError` for what no later step could mend."""
    if sys.version_info[:2] != PYTHON_VERSION:
        raise SetupError(
            f"Leash needs Python 3.11, but {sys.executable} is {platform.python_version()}: install "
            "Python 3.11 and run `make setup PYTHON=/path/to/python3.11`"
        )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(
            f"the packages in {LOCK.name} are built for Linux on x86-64, and this is {platform.system()} on "
            f"{platform.machine()}: use such a machine or container"
        )
    c_compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if not c_compiler or not shutil.which(os.environ.get("CXX", "c++")):
        raise SetupError(
            "no C and C++ compiler was found, and DeepSpeed compiles a small operator when it starts: "
            "install gcc and g++ (on Debian and Ubuntu the package build-essential)"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise SetupError(
            "the C headers of this Python are missing, and DeepSpeed compiles a small operator against them: "
            "install them (on Debian and Ubuntu the package python3.11-dev)"
        )


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for another setup of this tree; the kernel releases the lock when its holder ends, however."""
    with Path(__file__).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("waiting for another setup of this folder"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv() -> None:
    """An environment that works and that no interrupted installation has left half filled."""
    if VENV.exists() and (INSTALLING.exists() or not venv_works()):
        with step("removing .venv, which is incomplete or of another Python"):
            shutil.rmtree(VENV)
    if VENV.exists():
        return
    with step("making the virtual environment .venv"):
        done = subprocess.run(
            [sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"`{sys.executable} -m venv .venv` failed ({last_line(done.stdout + done.stderr)}): on Debian "
            "and Ubuntu install the package python3.11-venv"
        )


def venv_works() -> bool:
    """Whether it has pip and the Python that the lock is for."""
    script = "import sys, pip; print(*sys.version_info[:2], sep='.')"
    try:
        done = subprocess.run([str(PYTHON), "-c", script], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == "{}.{}".format(*PYTHON_VERSION)


def install_packages() -> None:
    """The packages of the lock, unless the stamp says that this very lock is installed."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if read_stamp(PACKAGES_STAMP) == digest:
        say("the packages are those of the lock")
        return
    PACKAGES_STAMP.unlink(missing_ok=True)
    free_bytes = shutil.disk_usage(VENV).free
    if free_bytes < NEEDED_BYTES:
        raise SetupError(
            f"the disk of {ROOT} has {free_bytes / 1e9:.1f} GB free of the {NEEDED_BYTES / 1e9:.0f} GB "
            "needed: make room"
        )
    PIP_LOG.unlink(missing_ok=True)
    INSTALLING.touch()
    num_packages = len(re.findall(r"^\S+==", LOCK.read_text(), flags=re.MULTILINE))
    with step(f"installing the {num_packages} packages of {LOCK.name}, the first time in about 3 minutes"):
        install_build_tool()
        pip_install("--no-deps", "--require-hashes", "--no-build-isolation", "--requirement", str(LOCK))
    write_stamp(PACKAGES_STAMP, digest)
    INSTALLING.unlink()


def install_build_tool() -> None:
    """The lock's setuptools first: DeepSpeed is built with it, and not with one that no hash pins."""
    block = re.search(r"^setuptools==.*\n(?: +--hash=.*\n)+", LOCK.read_text(), flags=re.MULTILINE)
    assert block, f"{LOCK} pins no setuptools"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(block.group())
        file.flush()
        pip_install("--no-deps", "--require-hashes", "--requirement", file.name)


def install_project() -> None:
    """Leash itself, editable, and its `leash` command."""
    digest = hashlib.sha256(f"{ROOT}\n{(ROOT / 'pyproject.toml').read_text()}".encode()).hexdigest()
    if read_stamp(PROJECT_STAMP) == digest:
        return
    with step("installing Leash itself, editable"):
        pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    write_stamp(PROJECT_STAMP, digest)


def pip_install(*arguments: str) -> None:
    """Run pip in `.venv`, its output going to a log; what went wrong as a `SetupError`."""
    command: Sequence[str] = [
        str(PYTHON),
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "install",
    ]
    with PIP_LOG.open("a") as log:
        start = log.tell()
        done = subprocess.run([*command, *arguments], stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        INSTALLING.unlink(missing_ok=True)  # pip came to its end, and puts back what it had begun
        raise SetupError(explain(PIP_LOG.read_text()[start:]))


def explain(output: str) -> str:
    """Why pip failed and what to do, in one sentence, from what it printed."""
    said = f"pip said {last_line(output)!r} (the whole log: {PIP_LOG.relative_to(ROOT)})"
    missing = MISSING.search(output)
    if "No space left on device" in output:
        return f"the disk filled up while installing: make room, then run `make setup` again; {said}"
    if UNREACHABLE.search(output) and (not missing or "(from versions: none)" in output):
        return (
            "the package registry could not be reached: check the network, or name a registry that this "
            f"machine reaches in PIP_INDEX_URL; {said}"
        )
    if missing and missing.group(1).startswith("torch=="):
        return (
            f"no registry that pip knows has {missing.group(1)}: PyTorch's own index of CPU wheels does, "
            f"give its address in PIP_EXTRA_INDEX_URL and run `make setup` again; {said}"
        )
    if missing:
        return (
            f"no registry that pip knows has {missing.group(1)}: name one that does in PIP_INDEX_URL or "
            f"PIP_EXTRA_INDEX_URL; {said}"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return f"a registry sent a file that differs from {LOCK.name}, so nothing of it was installed; {said}"
    return f"pip could not install what {LOCK.name} asks for; {said}"


def last_line(output: str) -> str:
    """The last line that says something: an error of pip's if there is one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1]


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    print(f"setup: {what} ...", end="", flush=True)
    started_s = time.monotonic()
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.monotonic() - started_s:.1f} s", flush=True)


def say(what: str) -> None:
    print(f"setup: {what}", flush=True)


def read_stamp(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def write_stamp(path: Path, digest: str) -> None:
    """All or nothing, like everything that says that something is finished."""
    partial = path.with_suffix(".partial")
    partial.write_text(digest + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
