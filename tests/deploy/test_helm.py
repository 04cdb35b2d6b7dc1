"""The Helm chart says the same as `leash render kuberay`. Its values and their schema are golden files."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestration.recipe.text import resolved_toml
from orchestration.rendering.documents import Document, from_yaml
from tests.deploy.golden import DEPLOY, RECIPE, documents

CHART = DEPLOY / "helm" / "leash"
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm")


def template(tmp_path: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(resolved_toml(RECIPE), encoding="utf-8")
    command = ["helm", "template", "run", str(CHART), "--set-file", f"recipe={recipe}"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run([*command, *sets], capture_output=True, text=True, check=False)


def by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@needs_helm
@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ([], {}),
        (
            ["rollout.spot=true", "rollout.node_selector.zone=a"],
            {"rollout": {"spot": True, "node_selector": {"zone": "a"}}},
        ),
        (
            ["pod_monitor=true", "learner.gpus=2", "image=leash:0.1.0-cuda"],
            {"pod_monitor": True, "learner": {"gpus": 2}},
        ),
        (
            ["name=other", "run_volume.storage_class=nfs"],
            {"name": "other", "run_volume": {"storage_class": "nfs"}},
        ),
    ],
)
def test_the_chart_renders_what_the_command_renders(
    tmp_path: Path, settings: list[str], values: dict[str, Any]
) -> None:
    done = template(tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    assert by_name(from_yaml(done.stdout)) == by_name(documents(**values))


@needs_helm
@pytest.mark.parametrize("setting", ["lerner.cpus=4", "learner.cpus=four", "image=", "metrics_port=80"])
def test_helm_refuses_a_wrong_value(tmp_path: Path, setting: str) -> None:
    done = template(tmp_path, setting)
    assert done.returncode != 0
    assert setting.partition("=")[0].split(".")[0] in done.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lerner": {}}, "Additional properties are not allowed"),
        ({"learner": {"cpu": 4}}, "Additional properties are not allowed"),
        ({"metrics_port": "9464"}, "is not of type 'integer'"),
        ({"namespace": "No_Such"}, "does not match"),
        ({"recipe": ""}, "should be non-empty"),
    ],
)
def test_the_schema_refuses_a_wrong_value(change: dict[str, Any], problem: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    (values,) = from_yaml((CHART / "values.yaml").read_text(encoding="utf-8"))
    values["recipe"] = resolved_toml(RECIPE)
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError, match=problem):
        jsonschema.validate(values | change, schema)


def test_every_value_of_the_chart_has_a_description() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    sections = [schema, *schema["$defs"].values()]
    missing = [
        name for each in sections for name, value in each["properties"].items() if "description" not in value
    ]
    assert missing == []
