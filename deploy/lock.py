"""The hash-pinned lock of all packages, from pyproject.toml and the overrides: what `make lock` writes.

.venv/bin/python deploy/lock.py      (standard library, and uv, which the lock brings itself)
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "requirements-cpu.lock"
OVERRIDES = ROOT / "deploy" / "requirements-cpu.overrides"
EXTRAS = ("cpu", "datasets", "demo", "trackers", "dev")


def resolve(lock: Path, *, project: Path = ROOT / "pyproject.toml") -> subprocess.CompletedProcess[str]:
    """Write `lock`. What it pins already stays as far as `project` allows it; uv says on stderr what is yanked."""
    uv = Path(sys.executable).parent / "uv"
    command = [str(uv), "pip", "compile", str(project), "--override", str(OVERRIDES)]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--output-file", str(lock)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | where_pip_looks(), capture_output=True, text=True, check=False
    )


def where_pip_looks() -> dict[str, str]:
    """The folders and indexes that pip knows, for uv: torch's +cpu file is not on every index."""
    folders = os.environ.get("PIP_FIND_LINKS") or _pip_setting("global.find-links")
    known = {
        "UV_FIND_LINKS": ",".join(folders.split()),
        "UV_EXTRA_INDEX_URL": os.environ.get("PIP_EXTRA_INDEX_URL", ""),
    }
    return {name: value for name, value in known.items() if value and name not in os.environ}


def _pip_setting(key: str) -> str:
    """Empty where it is not set: pip says so with an exit code."""
    command = [sys.executable, "-m", "pip", "config", "get", key]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    done = resolve(LOCK)
    print(done.stderr, end="", file=sys.stderr)
    sys.exit(done.returncode)
