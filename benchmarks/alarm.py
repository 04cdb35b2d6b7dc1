"""Does the alarm notice cheating, when, and by what? And does it stay silent over ordinary runs?

    python -m benchmarks.alarm [--only exclamations ordinary] [--seeds 0 1 2] [--steps 20] [--into runs/alarm]
    python -m benchmarks.alarm --from-folders runs/a runs/b     # look at runs that are there; train nothing

Trains alarm_cheat.toml once for each cheat and seed, on one of `benchmarks.alarm_rewards`. Gold is what the model
of human ratings and VADER say, recorded and not trained on. `ordinary` is the recipe movie-reviews-rloo as it is.
Runs that are finished are not trained again.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import print_table
from orchestration.alarm.review import Review, review

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
    print_table(
        "first alarm, and the gold reward's gain in standard deviations",
        (
            "run",
            "steps",
            "first alarm",
            "by",
            "score then",
            "gold then",
            "score at the end",
            "gold at the end",
        ),
        {run: _row(review(folder)) for run, folder in folders.items()},
    )


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


def _row(seen: Review) -> list[str]:
    """The cells of a run."""
    last = len(seen.records)
    if not seen.alarms:
        return [str(last), "none", "-", "-", "-", *_gains(seen, list(seen.records)[-3:])]
    first = seen.alarms[0][0]
    signals = ", ".join(alarm.signal for step, alarm in seen.alarms if step == first)
    return [str(last), first, signals, *_gains(seen, [first]), *_gains(seen, list(seen.records)[-3:])]


def _gains(seen: Review, steps: Sequence[str]) -> list[str]:
    """Mean gain of the score and of gold, over some steps."""
    cells = []
    for figure in ("signal_score_gain", "signal_gold_gain"):
        values = [seen.records[step][figure] for step in steps if figure in seen.records[step]]
        cells.append(f"{statistics.fmean(values):+.2f}" if values else "-")
    return cells


if __name__ == "__main__":
    main()
