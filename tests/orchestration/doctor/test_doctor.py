"""`leash doctor`: on this machine for real, and its exit codes with made-up facts. No cluster."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import cli
from orchestration.doctor import command, facts
from orchestration.doctor.command import finding_lines
from orchestration.doctor.facts import Gpu, collect, parse_nvidia_smi
from orchestration.doctor.findings import Finding
from tests.orchestration.doctor.test_findings import HEALTHY


def test_doctor_answers_for_this_machine_and_loads_nothing_heavy() -> None:
    program = """
import sys
from orchestration.cli import main
assert main(["doctor"]) in (0, 1)
print([name for name in ("torch", "vllm", "ray", "transformers", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in done.stdout


def test_facts_of_this_machine_are_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEASH_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o640)
    mask = os.umask(0o027)
    try:
        found = collect()
        assert os.umask(0o027) == 0o027  # looking does not change it
    finally:
        os.umask(mask)
    assert found.umask == 0o027
    assert found.ray_token_mode == 0o640
    assert found.cache == str(tmp_path / "not" / "there" / "yet")
    assert found.cache_is_writable
    assert len(found.missing_assets) == 2
    assert found.can_listen
    assert "secret" not in repr(found)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert collect().ray_token_mode is None
    (tmp_path / "elsewhere").touch(0o604)
    os.chmod(tmp_path / "elsewhere", 0o604)
    assert (collect().ray_token, collect().ray_token_mode) == (str(tmp_path / "elsewhere"), 0o604)


def test_a_port_that_somebody_listens_on_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(facts, "RAY_PORTS", (port,))
        assert collect().busy_ports == (port,)
    assert collect().busy_ports == ()


def test_gpus_are_read_from_nvidia_smi() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA L4, 23034, 550.54.15\n"
    assert parse_nvidia_smi(text) == (
        Gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559, driver="550.54.15"),
        Gpu(name="NVIDIA L4", memory_mib=23034, driver="550.54.15"),
    )
    assert parse_nvidia_smi("") == ()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'NVIDIA-SMI has failed'; exit 9", "NVIDIA-SMI has failed"),
        ("exit 3", "exit code 3"),
        ("echo 'NVIDIA L4, [N/A], 550'", "invalid literal for int() with base 10: '[N/A]'"),
        ("echo 'NVIDIA L4, 23034, 550.54'", None),
    ],
)
def test_an_nvidia_smi_that_fails_is_told_from_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = collect()
    assert found.gpu_error == error
    assert len(found.gpus) == (1 if error is None else 0)


@pytest.mark.parametrize(("umask", "code"), [(0o022, 0), (0o777, 1)])
def test_the_exit_code_says_whether_something_will_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], umask: int, code: int
) -> None:
    monkeypatch.setattr(command, "collect", lambda: replace(HEALTHY, umask=umask))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == f"{code} problems, 0 warnings"
    assert cli.main(["doctor", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["nodes"][0]["umask"] == umask
    assert sum(finding["level"] == "problem" for finding in report["findings"]) == code


def test_lines_are_grouped_by_node_with_the_fix_below() -> None:
    found = [
        Finding(node="a", level="ok", what="Python 3.11.9"),
        Finding(node="cluster", level="problem", what="torch differs", fix="install one lock"),
        Finding(node="a", level="warning", what="little memory", fix="plan"),
    ]
    assert list(finding_lines(found)) == [
        "a",
        "  ok       Python 3.11.9",
        "  warning  little memory",
        "            plan",
        "cluster",
        "  PROBLEM  torch differs",
        "            install one lock",
        "1 problems, 1 warnings",
    ]
