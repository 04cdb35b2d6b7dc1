"""`leash render kuberay RECIPE`: manifests on standard output or in a file, checked against our own rules."""

import argparse
import sys
from pathlib import Path

from core.errors import UserError
from orchestration.command import AddCommand
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.rendering.sizing import completed, unsized
from orchestration.rendering.values import read_values


def add_kuberay(add_command: AddCommand) -> None:
    """To `leash render`."""
    added = add_command("kuberay", _kuberay, "a RayJob for KubeRay 1.7, with its volume, policies and recipe")
    added.add_argument("recipe", metavar="RECIPE", help="a TOML file, or a name in deploy/recipes")
    added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides a key of the recipe")
    added.add_argument(
        "--image", help="of every pod; default: the values' image, or a tag of deploy/image/Dockerfile"
    )
    added.add_argument("--namespace", help="default: the values' namespace")
    added.add_argument(
        "--values", metavar="FILE", type=Path, help="a TOML file of values; see docs/cluster.md"
    )
    added.add_argument("--out", metavar="FILE", type=Path, help="default: standard output")


def _kuberay(args: argparse.Namespace) -> None:
    # PyYAML and the rules are not loaded for `leash validate`.
    from orchestration.rendering.documents import to_yaml
    from orchestration.rendering.kuberay import manifests
    from orchestration.rendering.rules import problems

    recipe = load_recipe(find_recipe(args.recipe), args.overrides)
    values = read_values(args.values, image=args.image, namespace=args.namespace)
    documents = manifests(recipe, values)
    ray_version = completed(values, recipe).ray_version
    found = [*unsized(values, recipe), *problems(documents, ray_version=ray_version)]
    if found:
        raise UserError("\n".join(found))
    text = to_yaml(documents)
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.write_text(text, encoding="utf-8")
