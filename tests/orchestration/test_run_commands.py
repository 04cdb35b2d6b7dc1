"""What `leash status`, `scale`, `pause`, `resume`, `set`, `verify` and `export` call, print and return."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from orchestration import cli
from orchestration.run_commands import status_lines
from tests.orchestration.live_run import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def over(tmp_path: Path) -> Path:
    """The folder of a run that has ended."""
    (tmp_path / "recipe.toml").write_text("[trainer]\nsteps = 8\n")
    return tmp_path


def test_the_commands_reach_the_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(served.folder)
    assert cli.main(["scale", run, "rollout=2", "reference=1"]) == 0
    assert cli.main(["set", run, "kl_coef=0.05", "learning_rate=1e-6"]) == 0
    assert cli.main(["pause", run]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{run}: paused, step 3 of 8")
    assert cli.main(["resume", run]) == 0
    assert served.controls.calls == [
        ("scale", {"rollout": 2, "reference": 1}),
        ("set", {"kl_coef": "0.05", "learning_rate": "1e-6"}),
        ("pause", None),
        ("resume", None),
    ]
    capsys.readouterr()
    assert cli.main(["status", run]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith(f"{run}: training, step 3 of 8")
    assert ["rollout-0", "rollout", "-", "3", "-", "-"] in [line.split() for line in table]
    assert ["kl_coef", "0.1"] in [line.split() for line in table]
    assert cli.main(["status", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"][0]["name"] == "rollout-0"


def test_what_a_run_says_is_wrong_ends_in_the_right_code(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(served.folder)
    for word, code, said in [
        ("critic=1", 2, "critic: no such kind of worker; rollout and reference are"),
        ("rollout=99", 1, "rollout-98 did not start"),
        ("rollout=13", 1, "ZeroDivisionError: a bug"),
    ]:
        assert cli.main(["scale", run, word]) == code
        assert capsys.readouterr().err == f"error: {run}: {said}\n"


def test_status_is_a_table_with_everything_the_run_says() -> None:
    status = {
        "state": "training",
        "step": 12,
        "steps": 40,
        "policy_version": 12,
        "seconds": 3723.4,
        "workers": [
            {
                "name": "rollout-0",
                "kind": "rollout",
                "state": "ready",
                "version": 12,
                "num_running": 4,
                "restarts": 0,
            },
            {"name": "reward-vader-10", "kind": "reward-vader", "state": "starting", "version": None},
        ],
        "settings": {"kl.kl_coef": 0.1, "learner.learning_rate": 1e-06, "alarm.action": "warn"},
        "changed": {"learner.learning_rate": "from step 7 on, by ada"},
        "events": ["rollout-1: died", {"step": 9, "text": "red \x1b[31m alert"}],
    }
    assert (
        "\n".join(status_lines(Path("runs/a"), status))
        == """\
runs/a: training, step 12 of 40, policy version 12, for 1:02:03

worker           kind          state     version  running  restarts
rollout-0        rollout       ready     12       4        0
reward-vader-10  reward-vader  starting  -        -        -

setting                value  set
kl.kl_coef             0.1
learner.learning_rate  1e-06  from step 7 on, by ada
alarm.action           warn

latest events
  rollout-1: died
  9  red [31m alert"""
    )
    assert list(status_lines(Path("runs/a"), {})) == ["runs/a: -, step - of -, policy version -, for -"]


def test_a_run_on_another_host_may_be_alive(over: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (over / "metrics.jsonl").write_text('{"step": 5}\n')
    control = over / "control.json"
    control.write_text('{"url": "http://127.0.0.1:1", "token": "t", "pid": 1, "host": "elsewhere"}')
    control.chmod(0o600)
    assert cli.main(["status", str(over)]) == 0
    assert capsys.readouterr().out == (
        f"{over}: out of reach, on elsewhere; was at step 5 of 8, no checkpoint; "
        f"if it is dead, go on with: leash train {over}/recipe.toml --run {over} --resume\n"
    )


def test_status_of_a_run_that_is_over_says_how_far_it_came(
    over: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on = f"go on with: leash train {over}/recipe.toml --run {over} --resume"

    def said() -> str:
        assert cli.main(["status", str(over)]) == 0
        return capsys.readouterr().out

    assert said() == f"{over}: not running; no step was finished, no checkpoint; {go_on}\n"
    (over / "metrics.jsonl").write_text('{"step": 5}\n')
    (over / "checkpoints" / "step-000004").mkdir(parents=True)
    assert said() == (
        f"{over}: not running; stopped after step 5 of 8, last checkpoint step-000004; {go_on}\n"
    )
    (over / "events.jsonl").write_text(
        '{"kind": "set", "key": "trainer.steps", "value": "12"}\n'
        '{"kind": "set", "key": "trainer.steps", "value": "8"}\n{"kind": "set", "key": "trainer.steps"'
    )
    (over / "recipe.toml").write_text("[trainer]\nsteps = 20\n")
    (over / "metrics.jsonl").write_text('{"step": 8}\n')
    (over / "summary.json").write_text("{}")
    assert said() == f"{over}: not running; finished after step 8 of 8\n"
    assert cli.main(["status", "--json", str(over)]) == 0
    known = {"state": "not running", "finished": True, "step": 8, "steps": 8, "checkpoint": "step-000004"}
    assert json.loads(capsys.readouterr().out) == known


@pytest.mark.parametrize("words", [["pause"], ["resume"], ["scale", "rollout=2"], ["set", "kl_coef=0.05"]])
def test_an_order_to_a_run_that_is_over_is_bad_input(
    over: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert cli.main([words[0], str(over), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {over}: not running: it has ended or died. Go on with: leash train ")


@pytest.mark.parametrize(
    ("command", "word", "complaint"),
    [
        ("scale", "rollout", "rollout: write KIND=NUMBER, such as rollout=2"),
        ("scale", "=2", "=2: write KIND=NUMBER, such as rollout=2"),
        ("scale", "rollout=", "rollout=: must be a number of workers"),
        ("scale", "rollout=-1", "rollout=-1: must be a number of workers"),
        ("scale", "rollout=1.5", "rollout=1.5: must be a number of workers"),
        ("scale", "rollout=\u00b2", "rollout=\u00b2: must be a number of workers"),
        ("scale", "reference=3", "reference=3: reference is given twice"),
        ("set", "kl_coef", "kl_coef: write KEY=VALUE, such as kl_coef=0.05"),
        ("set", "kl_coef=", "kl_coef=: has no value"),
        ("set", "reference=3", "reference=3: reference is given twice"),
    ],
)
def test_each_wrong_pair_is_a_sentence_and_the_run_hears_of_none(
    served: Served, capsys: pytest.CaptureFixture[str], command: str, word: str, complaint: str
) -> None:
    assert cli.main([command, str(served.folder), "reference=1", word, "x"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "error: 2 problems"
    assert second.startswith(f"  {complaint}")
    assert third.startswith("  x: write ")
    assert served.controls.calls == []


def test_a_value_may_hold_an_equals_sign(served: Served) -> None:
    assert cli.main(["set", str(served.folder), "schedule=a=b"]) == 0
    assert served.controls.calls == [("set", {"schedule": "a=b"})]


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["scale", "runs/a"],
        ["set", "runs/a"],
        ["pause", "runs/a", "now"],
        ["pause", "runs/a", "--now"],
        ["status", "runs/a", "--jso"],
        ["export", "runs/a"],
    ],
)
def test_wrong_options_are_code_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "scale", "pause", "resume", "set", "verify", "export"])
def test_help_names_every_command_and_the_folder(capsys: pytest.CaptureFixture[str], command: str) -> None:
    for words in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert f" {command} " in printed
        assert "RUN" in printed


def test_steering_loads_nothing_heavy(over: Path) -> None:
    program = f"""
import sys
from orchestration.cli import main
assert main(["status", {str(over)!r}]) == 0
assert main(["pause", {str(over)!r}]) == 2
heavy = ("torch", "vllm", "ray", "transformers", "deepspeed", "starlette", "uvicorn", "rich", "pyarrow")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the audit of the next run says."""
    audit = ModuleType("orchestration.ledger.audit")
    says = SimpleNamespace(violations=(), rows=[], folders=[])

    def audit_of(folder: Path) -> SimpleNamespace:
        says.folders.append(folder)
        return says

    def exported_rows(folder: Path) -> Iterator[dict[str, Any]]:
        says.folders.append(folder)
        yield from says.rows

    audit.audit, audit.exported_rows = audit_of, exported_rows  # type: ignore[attr-defined]
    audit.audit_lines = lambda found: ["line", *found.violations]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestration.ledger.audit", audit)
    return says


def test_verify_prints_the_audit_and_fails_on_a_violation(
    ledger: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "runs/a"]) == 0
    assert capsys.readouterr().out == "line\n"
    ledger.violations = ("group 3 is in steps 1 and 2",)
    assert cli.main(["verify", "runs/a"]) == 1
    assert capsys.readouterr().out == "line\ngroup 3 is in steps 1 and 2\n"
    assert ledger.folders == [Path("runs/a")] * 2


def test_export_writes_the_rows_of_the_run(
    ledger: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.rows = [{"number": 0}, {"number": 1}]
    file = tmp_path / "rows.jsonl"
    assert cli.main(["export", "runs/a", str(file)]) == 0
    assert file.read_text() == '{"number": 0}\n{"number": 1}\n'
    assert capsys.readouterr().out == f"{file}: 2 trajectories\n"
    assert ledger.folders == [Path("runs/a")]
    assert cli.main(["export", "runs/a", str(tmp_path / "rows.csv")]) == 2
    assert ".csv: a file ends in .jsonl (JSON lines) or .parquet (Parquet)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_folder_without_a_ledger_is_bad_input(
    over: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert cli.main([command, str(over), *([str(over / "x.jsonl")] if command == "export" else [])]) == 2
    assert "no ledger in it" in capsys.readouterr().err
    assert [file.name for file in over.iterdir()] == ["recipe.toml"]
