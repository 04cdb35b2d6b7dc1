"""Files in `deploy/` that are made from the code, as they were reviewed: a test compares.

After a wanted change: python -m tests.deploy.golden
"""

import json
from pathlib import Path

from pydantic import Field

from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.rendering.documents import Document, to_yaml
from orchestration.rendering.kuberay import manifests
from orchestration.rendering.sizing import completed
from orchestration.rendering.values import RolloutGroup, Values

DEPLOY = Path(__file__).parents[2] / "deploy"
RECIPE = load_recipe(find_recipe("movie-reviews"))


class ChartValues(Values):
    """Values of the Helm chart: those of `leash render kuberay`, and the recipe, which a template cannot read."""

    recipe: str = Field(min_length=1)
    """Text of the recipe: --set-file recipe=FILE, resolved as `leash validate` prints it."""


def documents(**values: object) -> list[Document]:
    """The example recipe, rendered with some values."""
    return manifests(RECIPE, Values.model_validate(values))


def golden() -> dict[Path, str]:
    """Path -> the text that should be in it."""
    monitor = documents(pod_monitor=True)[-1]
    chart = completed(Values(rollout=RolloutGroup()), RECIPE).model_dump(exclude_none=True)
    schema = json.dumps(ChartValues.model_json_schema(), indent=2) + "\n"
    return {
        DEPLOY / "kuberay/base/leash.yaml": to_yaml(documents()),
        DEPLOY / "kuberay/overlays/monitoring/pod-monitor.yaml": to_yaml([monitor]),
        DEPLOY / "helm/leash/values.yaml": CHART_HEADER + to_yaml([chart]),
        DEPLOY / "helm/leash/values.schema.json": schema,
    }


CHART_HEADER = """\
# The sizes and the image fit the example recipe. A template cannot read a recipe: for another one, set those that
# `leash render kuberay RECIPE` gives. What each value means is in values.schema.json. The recipe itself is given as
#   helm install movie-reviews deploy/helm/leash --set-file recipe=resolved.toml
# where resolved.toml is what `leash validate RECIPE` prints.
"""


if __name__ == "__main__":
    for file, text in golden().items():
        file.write_text(text, encoding="utf-8")
