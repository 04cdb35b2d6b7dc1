"""How the samples of earlier runs were decoded, as the recipes in their folders say, and whether that suits."""

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from actors.config import RolloutConfig, RunDataset
from actors.decoding import decoding_of
from core.decoding import Decoding
from core.errors import UserError
from orchestration.recipe.config import Recipe
from orchestration.recipe.text import NONE, toml_value


def check_decoded_alike(recipe: Recipe) -> None:
    """For REBEL, which compares the log-probs that samples had when they were drawn with those that the policy
    gives them: both must be of one decoding. Raises `UserError`."""
    own = asdict(decoding_of(recipe.rollout))
    for place, dataset in enumerate(recipe.datasets):
        if not isinstance(dataset, RunDataset):
            continue
        for folder, decoding in _decodings(Path(dataset.path)):
            if others := {key: value for key, value in asdict(decoding).items() if value != own[key]}:
                raise UserError(
                    f"datasets.{place} (run): log-probs in {folder} are at {_said(others)}, and the policy's would "
                    f"be at {_said({key: own[key] for key in others})}, so rebel would learn the difference. Set "
                    f'{_said(others, "rollout.")}, or algorithm.kind = "dpo".'
                )


def _decodings(folder: Path) -> Iterator[tuple[Path, Decoding]]:
    """Of all that lies in a run's samples: what it sampled itself, or what its datasets hold. Texts have the
    log-probs of the reference, which cuts nothing off."""
    recipe = _recipe_of(folder)
    keys = {field.name for field in fields(Decoding)}
    given = {key: value for key, value in recipe.get("rollout", {}).items() if key in keys and value != NONE}
    decoding = decoding_of(RolloutConfig(**given))
    datasets = recipe.get("datasets", [])
    for dataset in datasets:
        if dataset["kind"] == "run":
            yield from _decodings(Path(dataset["path"]))
        else:
            yield folder, decoding.untruncated
    if not datasets:
        yield folder, decoding


def _recipe_of(folder: Path) -> dict[str, Any]:
    """As it was written there, maybe by another version of Leash."""
    try:
        return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{folder}: its recipe.toml, which says how its samples were decoded, cannot be read ({error}), and "
            'rebel must know; give the folder of a run, or set algorithm.kind = "dpo"'
        ) from error


def _said(values: dict[str, Any], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{key} = {toml_value(value)}" for key, value in values.items())
