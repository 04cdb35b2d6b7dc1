"""Where a run's samples lie in its folder; on its own, so that who only lists them loads nothing heavy."""

from pathlib import Path

SAMPLES_FOLDER = "samples"
"""In a run's folder: a file for each step."""


def step_file(run: Path, step: int) -> Path:
    """The file of a step's samples, whether it is there or not."""
    return run / SAMPLES_FOLDER / f"step-{step:06d}.jsonl"


def step_files(run: Path) -> dict[int, Path]:
    """The files of samples in a run's folder, by step and in order."""
    files = (run / SAMPLES_FOLDER).glob("step-*.jsonl")
    steps = {file.stem.removeprefix("step-"): file for file in files}
    return dict(sorted((int(step), file) for step, file in steps.items() if step.isdecimal()))
