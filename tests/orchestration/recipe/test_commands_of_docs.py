"""What the docs tell people to type is a valid recipe."""

import re
from pathlib import Path

import pytest

from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe

REPOSITORY = Path(__file__).parents[3]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        (recipe, overrides)
        for page in PAGES
        for recipe, overrides in re.findall(
            r"leash (?:train|reward) (movie-reviews[a-z-]*)((?: [a-z_]+(?:\.\w+)+=\S+?)*)(?=[`\s])",
            page.read_text(encoding="utf-8"),
        )
    }
)


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) >= 17


@pytest.mark.parametrize(("recipe", "overrides"), COMMANDS)
def test_a_command_of_the_docs_is_valid(recipe: str, overrides: str) -> None:
    loaded = load_recipe(find_recipe(recipe), overrides.split())
    assert loaded.name == recipe
