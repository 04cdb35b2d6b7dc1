"""`leash render`, and that what is committed is what it writes."""

from pathlib import Path

import pytest

from orchestration import cli
from orchestration.render import RENDERINGS, rendered

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("what", RENDERINGS)
def test_the_committed_files_are_those_that_are_generated(what: str) -> None:
    folder = REPOSITORY / RENDERINGS[what].folder
    for path, text in rendered(what).items():
        assert (folder / path).read_text(encoding="utf-8") == text, f"run: leash render {what}"


def test_no_dashboard_or_rule_is_left_over() -> None:
    folder = REPOSITORY / "deploy" / "monitoring"
    generated = {folder / path for path in rendered("monitoring")}
    committed = {
        path for part in ("rules", "grafana") for path in (folder / part).rglob("*") if path.is_file()
    }
    assert committed == generated - {folder / "prometheus.yml"}


def test_files_are_written_into_the_folder_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", "monitoring", str(tmp_path / "new")]) == 0
    written = {str(path.relative_to(tmp_path / "new")) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == rendered("monitoring").keys()
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "new" / path) for path in rendered("monitoring")
    ]


def test_without_a_folder_they_go_where_the_repository_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", "docs"]) == 0
    assert (tmp_path / "docs" / "metrics.md").is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["render", "docs", str(tmp_path / "file")]) == 2
    assert f"{tmp_path}/file/metrics.md: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["render"], ["render", "nonsense"], ["render", "docs", "a", "b"]])
def test_wrong_words_end_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
