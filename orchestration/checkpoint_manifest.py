"""A checkpoint's manifest: size and digest of every file, so that damage shows before it is trained on.

manifest.json   {"step": 5, "files": {"learner.json": {"size_bytes": 80, "sha256": "9f86..."}, ...}}
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
NUM_THREADS = 8
"""Files digested at once; hashlib works without Python's lock. SHA-256 does a gigabyte or two a second and core."""


class SavedFile(BaseModel):
    """One file as it was saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """All files of a checkpoint but the manifest, by their path inside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    files: dict[str, SavedFile]


def write_manifest(folder: Path, step: int) -> None:
    """Digest what is in the folder. Call when everything else has been written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        saved = dict(
            zip((str(file.relative_to(folder)) for file in files), threads.map(_saved, files), strict=True)
        )
    manifest = Manifest(step=step, files=saved)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def find_damage(folder: Path, step: int) -> list[str]:
    """What differs from the checkpoint that was saved at this step, each with its file; nothing if it is whole.
    A file that nobody saved is no damage."""
    file = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return [f"{file}: missing, so nobody knows whether the rest is whole"]
    except (OSError, ValueError) as error:
        return [f"{file}: cannot be read ({str(error).splitlines()[0]})"]
    damage = [] if manifest.step == step else [f"{file}: is of step {manifest.step}, not {step}"]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        found = threads.map(_damage, (folder / name for name in manifest.files), manifest.files.values())
    return damage + [problem for problem in found if problem is not None]


def _saved(file: Path) -> SavedFile:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return SavedFile(size_bytes=file.stat().st_size, sha256=digest)


def _damage(file: Path, saved: SavedFile) -> str | None:
    try:
        size_bytes = file.stat().st_size
        if size_bytes != saved.size_bytes:
            return f"{file}: {size_bytes} bytes, and {saved.size_bytes} were saved"
        if _saved(file) != saved:
            return f"{file}: its contents are not what was saved (SHA-256)"
    except OSError as error:
        return f"{file}: {error.strerror or error}"
    return None
