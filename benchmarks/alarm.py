"""Does the alarm notice cheating, when, and by what? And does it stay silent over ordinary runs?

    python -m benchmarks.alarm [--only exclamations ordinary] [--seeds 0 1 2] [--steps 20] [--into runs/alarm]
    python -m benchmarks.alarm --from-folders runs/a runs/b     # look at runs that are there; train nothing

Trains alarm_cheat.toml once for each cheat and seed, on one of `benchmarks.alarm_rewards`. Gold is what the model
of human ratings and VADER say, recorded and not trained on. `ordinary` is the recipe movie-reviews-rloo as it is.
Runs that are finished are not trained again. `--gold` adds a gold that minds nonsense (`benchmarks/alarm_gold.py`),
and scores the runs' samples with it. What the columns mean is in `benchmarks/alarm_table.py`.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.alarm_gold import GOLD, GoldModel, load_gold, train_gold
from benchmarks.alarm_table import ALARM_HEADER, GOLD_HEADER, WatchedRun, alarm_row, gold_row
from benchmarks.measuring import print_table
from core.errors import UserError
from core.sample_files import step_files
from orchestration.alarm.monitor import gold_of
from orchestration.alarm.review import HELDOUT, review
from orchestration.alarm.samples import heldout_samples, samples_of_step
from orchestration.recipe.loading import load_recipe
from orchestration.run_folder import BEFORE_FILE

ORDINARY = "ordinary"
CHEATS = ("exclamations", "phrase", "length", "brevity")
REPOSITORY = Path(__file__).parents[1]
CHEAT_RECIPE = "benchmarks/alarm_cheat.toml"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=(ORDINARY, *CHEATS), default=[ORDINARY, *CHEATS])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--into", type=Path, default=Path("runs/alarm"), metavar="FOLDER")
    arguments.add_argument("--from-folders", type=Path, nargs="+", metavar="RUN")
    arguments.add_argument("--gold", action="store_true", help="one more gold, learned for the purpose")
    options = arguments.parse_args()
    if options.from_folders:
        folders = {folder.name: folder for folder in options.from_folders}
    else:
        folders = {
            f"{name}-{seed}": options.into / f"{name}-{seed}"
            for name in options.only
            for seed in options.seeds
        }
        for run, folder in folders.items():
            name, _, seed = run.rpartition("-")
            _train(name, int(seed), options.steps, folder)
    watched = {run: watched_run(folder) for run, folder in folders.items()}
    if options.gold:
        model = load_gold(train_gold())
        watched = {run: with_gold(watched[run], folder, model) for run, folder in folders.items()}
    rows = {name: alarm_row(run) for name, run in watched.items()}
    print_table("the first alarm, and the score that was trained on", ALARM_HEADER, rows)
    rows = {f"{name}, {gold}": gold_row(run, gold) for name, run in watched.items() for gold in run.golds}
    print_table("gold, recorded and never trained on", GOLD_HEADER, rows)


def watched_run(folder: Path) -> WatchedRun:
    """A run's completions, and what the alarm with the run's own limits says of them. `UserError` for a folder that
    has none."""
    seen = review(folder)
    if HELDOUT in seen.records:
        raise UserError(
            f"{folder}: learns from a dataset, so no step shows its policy; see leash alarm {folder}"
        )
    steps = {step: samples_of_step(file) for step, file in step_files(folder).items()}
    first = min((int(step) for step, _ in seen.alarms), default=None)
    return WatchedRun(
        untrained=[*steps[1], *heldout_samples(folder / BEFORE_FILE)],
        steps=steps,
        golds=gold_of(load_recipe(folder / "recipe.toml")),
        alarm_step=first,
        signals=[alarm.signal for step, alarm in seen.alarms if int(step) == first],
    )


def with_gold(run: WatchedRun, folder: Path, model: GoldModel) -> WatchedRun:
    """The run with `GOLD` among the rewards of its samples."""
    steps = {step: model.of_step(file, run.steps[step]) for step, file in step_files(folder).items()}
    heldout = model.of_heldout(folder / BEFORE_FILE, run.untrained[len(steps[1]) :])
    return replace(run, untrained=[*steps[1], *heldout], steps=steps, golds=[*run.golds, GOLD])


def overrides_of(name: str, seed: int, steps: int) -> list[str]:
    """What is changed in the recipe."""
    common = [f"seed={seed}", f"trainer.steps={steps}", "trainer.save_model=false", "alarm.action=warn"]
    if name == ORDINARY:
        return common
    return [
        *common,
        f"rewards.0.name={name}",
        f"rewards.0.function=benchmarks.alarm_rewards:{name}",
    ]


def _train(name: str, seed: int, steps: int, folder: Path) -> None:
    if (folder / "summary.json").is_file():
        return
    recipe = "movie-reviews-rloo" if name == ORDINARY else CHEAT_RECIPE
    command = [sys.executable, "-m", "orchestration.cli", "train", recipe]
    resume = ["--resume"] if (folder / "recipe.toml").is_file() else []
    subprocess.run(
        [*command, *overrides_of(name, seed, steps), "--run", str(folder), *resume],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
    )


if __name__ == "__main__":
    main()
