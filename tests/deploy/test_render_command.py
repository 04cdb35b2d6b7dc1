"""`leash render kuberay`: what it writes, and what it says about bad input."""

from pathlib import Path

import pytest

from orchestration import cli
from orchestration.rendering.documents import from_yaml
from tests.deploy.golden import DEPLOY

RENDER = ["render", "kuberay", "movie-reviews"]


def test_the_base_is_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = (DEPLOY / "kuberay" / "base" / "leash.yaml").read_text(encoding="utf-8")
    assert cli.main(RENDER) == 0
    assert capsys.readouterr().out == base
    assert cli.main([*RENDER, "--out", str(tmp_path / "out.yaml")]) == 0
    assert (tmp_path / "out.yaml").read_text(encoding="utf-8") == base


def test_options_override_values_and_overrides_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.toml").write_text('image = "a:1"\nnamespace = "one"\nretries = 7\n', encoding="utf-8")
    words = ["--values", str(tmp_path / "v.toml"), "--namespace", "two", "trainer.checkpoint_every=4"]
    assert cli.main([*RENDER, *words]) == 0
    documents = from_yaml(capsys.readouterr().out)
    job = documents[-1]
    assert {document["metadata"]["namespace"] for document in documents} == {"two"}
    assert job["spec"]["backoffLimit"] == 7
    assert (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == "a:1"
    )
    assert "trainer.checkpoint_every=4 " in job["spec"]["entrypoint"]


@pytest.mark.parametrize(
    ("values", "words", "problem"),
    [
        ("retires = 7", [], "v.toml: retires: Extra inputs are not permitted"),
        ("[learner]\ncpus = 0", [], "v.toml: learner.cpus: Input should be greater than or equal to 1"),
        ("retries = ", [], "v.toml: not valid TOML"),
        ("[learner]\nray_cpus = 0", [], "group learner: has 0 CPUs and 0 GPUs for Ray"),
        ("", ["--namespace", "No_Such"], "--namespace No_Such: "),
        ("", ["--image", ""], "--image : "),
        (
            "",
            ["name=1a"],
            "RayJob 1a: KubeRay takes a name of at most 47 lower-case letters, digits and hyphens",
        ),
        ("", ["name=a-"], "RayJob a-: KubeRay takes"),
        ("", [f"name={'a' * 48}"], f"RayJob {'a' * 48}: KubeRay takes"),
        ('name = "1a"', [], "v.toml: name: String should match pattern"),
        ("", ["model.path=/home/me/model"], "recipe: model.path = /home/me/model: no pod has it"),
        ("", ["model.path=lab/tiny"], "recipe: model.path = lab/tiny: no pod reaches the Hugging Face Hub"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: str, words: list[str], problem: str
) -> None:
    (tmp_path / "v.toml").write_text(values, encoding="utf-8")
    assert cli.main([*RENDER, "--values", str(tmp_path / "v.toml"), *words]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("words", [[f"name={'a' * 47}"], ["name=1a", "--values", "{folder}/v.toml"]])
def test_a_name_that_kuberay_takes_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (tmp_path / "v.toml").write_text('name = "one"', encoding="utf-8")
    assert cli.main([*RENDER, *(word.format(folder=tmp_path) for word in words)]) == 0
    assert "kind: RayJob" in capsys.readouterr().out


def test_a_values_file_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RENDER, "--values", "nowhere.toml"]) == 2
    assert "--values nowhere.toml: cannot be read (No such file or directory)" in capsys.readouterr().err
