"""The `leash` command: what people type becomes one call, what goes wrong a sentence and an exit code.

Exit codes: 0 done, 1 another process failed, or `verify`, `plan` or `doctor` found something wrong, 2 bad input,
130 interrupted. Our own bugs keep their traceback.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError, WorkerError
from orchestration.alarm.command import add_alarm_command
from orchestration.assets import ASSET_PREFIX, RATINGS, prepare
from orchestration.command import AddCommand, Command
from orchestration.dashboard.command import add_dashboard_command
from orchestration.doctor.command import add_doctor_command
from orchestration.jobs.submit import add_submit_command
from orchestration.planning.command import add_plan_command
from orchestration.printable import printable
from orchestration.recipe.config import Recipe
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.recipe.text import describe
from orchestration.render import add_render_commands
from orchestration.reward_functions import missing_functions
from orchestration.run_commands import add_run_commands
from orchestration.run_folder import holds_run

_DESCRIPTION = """\
Reinforcement learning from human feedback for language models, kept on a leash:
as close to the reference as you say, from a laptop's two cores to a cluster.
"""
_EPILOG = """\
A RECIPE is a TOML file, or the bare name of one in deploy/recipes. KEY=VALUE overrides one of its keys:

  leash doctor                                            does this machine have what Leash needs?
  leash demo                                              the whole loop on this machine
  leash validate movie-reviews                            every key, its value and its meaning
  leash plan movie-reviews                                memory of every process, and whether it fits
  leash train movie-reviews kl.kl_coef=0.1 trainer.steps=40
  leash train my.toml rewards.0.weight=0.5 --run runs/a   a second reward, at half weight
  leash train my.toml --run runs/a --resume               go on where that run stopped
  leash rollout my.toml --policy runs/a/model             sample and score alone, without a learner

A RUN is the folder of a run. While it works, it can be asked and steered from another terminal:

  leash status runs/a                                     what it does now, or how far it came
  leash set runs/a kl_coef=0.05 steps=80                  and pause, resume, scale
  leash dash runs/a runs/b                                curves, events and rollouts in the browser
  leash verify runs/a                                     was every trajectory trained on once, or discarded?
  leash export runs/a rollouts.parquet                    every trajectory and what became of it
  leash alarm runs/a                                      does the policy cheat its reward?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Wrong options end in argparse's SystemExit, with code 2 too."""
    args = _parse(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a policy may write what this terminal cannot show
    try:
        command: Command = args.command
        return command(args) or 0
    except UserError as error:
        _say_error(str(error))
        return 2
    except WorkerError as error:
        _say_error(str(error))
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _validate(args: argparse.Namespace) -> None:
    recipe = _load(args)
    print(describe(recipe), end="")
    for missing in missing_functions(recipe):  # the run may be on other machines, which have it
        print(f"note: {missing}", file=sys.stderr)
    print(f"{find_recipe(args.recipe)}: valid", file=sys.stderr)


def _train(args: argparse.Namespace) -> None:
    recipe = _load(args)
    if (args.resume or args.resume_or_start) and args.run is None:
        option = "--resume" if args.resume else "--resume-or-start"
        raise UserError(f"{option}: goes on with a run, so it needs its folder; add --run FOLDER")
    resume = args.resume or (args.resume_or_start and holds_run(args.run))
    # Imports torch and Ray, seconds that whoever only asks for help or a check must not wait.
    from orchestration.run import train

    train(recipe, run_folder=args.run, resume=resume, address=args.address)


def _rollout(args: argparse.Namespace) -> None:
    recipe = load_recipe(find_recipe(args.recipe), [*args.overrides, f"trainer.steps={args.steps}"])
    # Imports torch and Ray, as above.
    from orchestration.sampling import sample

    sample(recipe, run_folder=args.run, policy=args.policy, address=args.address)


def _reward(args: argparse.Namespace) -> None:
    recipe = _load(args)
    if recipe.reward_model is None:
        raise UserError(
            f"{find_recipe(args.recipe)}: has no reward model to train; add a [reward_model] table"
        )
    # Imports torch, as above.
    from orchestration.inputs import train_reward_model

    train_reward_model(recipe)


def _serve_reward(args: argparse.Namespace) -> None:
    recipe = _load(args)
    # Imports an HTTP server, and maybe torch.
    from orchestration.reward_server import serve_reward

    serve_reward(
        recipe,
        args.reward,
        host=args.host,
        port=args.port,
        token_file=args.token_file,
        deadline_s=args.deadline,
    )


def _demo(args: argparse.Namespace) -> None:
    recipe = _load(args)
    for name in _assets(recipe):
        prepare(name)
    # Imports torch and Ray, as above.
    from orchestration.run import train

    train(recipe, run_folder=None, resume=False, address=None)


def _load(args: argparse.Namespace) -> Recipe:
    return load_recipe(find_recipe(args.recipe), args.overrides)


def _assets(recipe: Recipe) -> list[str]:
    """Names of the models and data that the recipe needs from the cache."""
    paths = [recipe.model.path, *(getattr(reward, "path", None) or "" for reward in recipe.rewards)]
    names = [path.removeprefix(ASSET_PREFIX) for path in paths if path.startswith(ASSET_PREFIX)]
    learns_from_ratings = recipe.reward_model is not None and not recipe.reward_model.datasets
    with_datasets = (recipe, recipe.pretraining, recipe.reward_model)
    datasets = [dataset for table in with_datasets if table for dataset in table.datasets]
    kinds = {recipe.prompts.kind, *(dataset.kind for dataset in datasets)}
    uses_ratings = learns_from_ratings or RATINGS.name in kinds
    return list(dict.fromkeys([*names, RATINGS.name] if uses_ratings else names))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="leash",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    _add_recipe_commands(add)
    add_run_commands(add)
    add_render_commands(add)
    add_alarm_command(add)
    add_submit_command(add)
    add_doctor_command(add)
    add_dashboard_command(add)
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}; `leash COMMAND --help` lists the options")
    if hasattr(args, "overrides"):
        args.overrides += rest  # argparse stops taking overrides at the first option; these came after one
    elif rest:
        parser.error(f"unexpected argument {rest[0]}; `leash COMMAND --help` shows what a command takes")
    return args


def _add_recipe_commands(add_command: AddCommand) -> None:
    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = add_command(name, command, text)
        if name == "demo":
            added.add_argument(
                "--recipe", metavar="RECIPE", default="movie-reviews", help="default: %(default)s"
            )
        else:
            added.add_argument("recipe", metavar="RECIPE", help="a TOML file, or a name in deploy/recipes")
        added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides a key of the recipe")
        return added

    add("demo", _demo, "fetch what is missing, learn the reward model, train, and compare before and after")
    train = add("train", _train, "train the policy")
    train.add_argument(
        "--run", metavar="FOLDER", type=Path, help="folder of the run; default: a new one in runs/"
    )
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --run")
    train.add_argument(
        "--resume-or-start",
        action="store_true",
        help="go on if --run holds a run, else start one there: for jobs that are tried again",
    )
    train.add_argument(
        "--address", help="address of a running Ray cluster; default: one of its own, on this machine"
    )
    rollout = add("rollout", _rollout, "sample and score alone, without a learner, into the folder of a run")
    rollout.add_argument(
        "--run", metavar="FOLDER", type=Path, help="a new folder, for what comes out; default: one in runs/"
    )
    rollout.add_argument(
        "--steps", metavar="N", default="1", help="steps' worth of prompts; default: %(default)s"
    )
    rollout.add_argument(
        "--policy",
        metavar="FOLDER",
        help="saved model to sample from, such as runs/a/model; default: the recipe's",
    )
    rollout.add_argument(
        "--address", help="address of a running Ray cluster; default: one of its own, on this machine"
    )
    add("reward", _reward, "train the recipe's reward model, and report its held-out accuracy")
    serve = add("serve-reward", _serve_reward, "serve a reward of the recipe over HTTP, for runs elsewhere")
    serve.add_argument("--reward", metavar="NAME", help="which one; may be left out if there is only one")
    serve.add_argument("--host", default="127.0.0.1", help="address to serve at; default: %(default)s")
    serve.add_argument("--port", type=int, default=8300, help="0: a free one; default: %(default)s")
    serve.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="made if there is none; default: reward-token in the cache",
    )
    serve.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="for one request; default: %(default)g",
    )
    add("validate", _validate, "check a recipe and print every key with its value and meaning")
    add_plan_command(add)


def _say_error(message: str) -> None:
    lines = message.splitlines()
    if len(lines) > 1:
        message = "\n  ".join([f"{len(lines)} problems", *lines])
    print(f"error: {printable(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
