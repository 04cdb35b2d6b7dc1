"""The door to the Hugging Face Hub: a model's name and a commit in, a folder on this node out.

Only what Leash reads is fetched, and all of it is data: no code, and no weights in formats that may hold code.
Where the Hub is, who asks, and where files are kept is said by `huggingface_hub`'s own environment variables:
HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import UserError

FETCHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Weights, configuration, chat template, and vocabularies of tokenizers."""
LEFT_OUT = ("*/*", "consolidated*")
"""Folders, which hold other forms of the same model, and the weights once more under the names of their authors."""
LOOK_UP_S = 10.0
"""For a question that only makes an error message better."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub at one commit: the same files on whatever node asks."""

    name: str
    revision: str
    """Hash of the commit."""


ModelSource = Path | HubModel
"""Where a process finds a model: a folder that every node sees, or on the Hub."""


def is_hub_name(text: str) -> bool:
    """Whether it has the form `org/name`. A relative path may have it, too; an absolute one has not."""
    return _NAME.fullmatch(text) is not None


def is_commit(revision: str) -> bool:
    """Whether it is the whole hash of a commit, and no branch or tag."""
    return _COMMIT.fullmatch(revision) is not None


def model_folder(source: ModelSource, *, node: str | None = None) -> Path:
    """The model's folder on this node; from the Hub it is fetched first, unless the cache holds all of it.

    Several processes may ask at once: `huggingface_hub` locks each file. `node` is how errors call this one. Raises
    `UserError`.
    """
    if isinstance(source, Path):
        return source
    try:
        folder = _fetched(source)
    except Exception as error:  # its own, those of the file system, and those of what it speaks HTTP with
        raise _refusal(source, node, _reason(source, error)) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise _refusal(
            source,
            node,
            "holds no config.json with weights as safetensors. Other formats may hold code and are not read; "
            "choose another model, or a commit that has them",
        )
    return folder


def cached_folder(model: HubModel) -> Path:
    """Where the cache of this machine has the model, or would have it. Asks nobody."""
    from huggingface_hub import constants  # whoever names no model on the Hub must not wait for it

    folder = f"models--{model.name.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder / "snapshots" / model.revision


def how_to_pin(name: str, *, kind: str = "model") -> str:
    """What to write as the revision of a model or dataset, as the rest of a sentence. May ask the Hub."""
    command = f"`hf {kind}s info {name}` shows as sha"
    # As in `model_folder`.
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(name, repo_type=kind, timeout=LOOK_UP_S)
    except Exception:  # offline, gated, misspelt: then it is for the user to find out
        return f'revision = "HASH", the one that {command}'
    return f'revision = "{info.sha}", the newest now (which {command})'


def _fetched(model: HubModel) -> Path:
    """The folder in the cache, complete."""
    # Half a second of imports, for those who name a model on the Hub.
    from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree, snapshot_download

    fetch: Any = partial(
        snapshot_download,
        model.name,
        revision=model.revision,
        allow_patterns=list(FETCHED),
        ignore_patterns=list(LEFT_OUT),
    )
    try:
        get_cached_repo_tree(model.name, revision=model.revision)
    except errors.CachedRepoTreeNotFoundError:
        # The library asks for the list of files without a deadline, so whether anybody answers is found out first.
        try:
            HfApi().repo_info(model.name, revision=model.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception:  # as in `model_folder`: then what is in the cache has to do
            with suppress(errors.LocalEntryNotFoundError):
                return Path(fetch(local_files_only=True))
            raise
    return Path(fetch())


def _refusal(model: HubModel, node: str | None, reason: str) -> UserError:
    where = f"node {node}: " if node else ""
    return UserError(f"{where}model {model.name} at revision {model.revision}: {reason}")


def _reason(model: HubModel, error: Exception) -> str:
    """Why it cannot be had, and what to do. Says nothing that a request was signed with."""
    from huggingface_hub import constants, errors  # loaded already

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    match error:
        case errors.HFValidationError():
            return f"cannot be a name on the Hub ({error}); correct it"
        case errors.GatedRepoError():
            return (
                f"is gated, and {hub} does not give it to this account; ask for access at {hub}/{model.name}, and "
                "put a token of the account that has it into HF_TOKEN"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"{hub} knows no such model, or keeps it from this account; correct the name, or for a private "
                "model put a token into HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            command = f"hf models info {model.name}"
            return f"{hub} has the model, but not this commit; set the one that `{command}` shows as sha"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            instead = "give HF_TOKEN a token that may read it" if status in (401, 403) else "try again later"
            return f"{hub} answers {status}; {instead}"
        case OSError() if error.errno is not None:
            return f"cannot be written to {cache} ({error.strerror}); make room there, or set HF_HOME"
    first_line = str(error).partition("\n")[0]
    asked = (
        "HF_HUB_OFFLINE forbids to ask the Hub"
        if constants.HF_HUB_OFFLINE
        else f"{hub} cannot be reached ({type(error).__name__}: {first_line})"
    )
    return (
        f"{asked}, and the cache {cache} does not hold all of it; let this machine reach the Hub, or set HF_HOME "
        f"to a folder into which `hf download {model.name} --revision {model.revision}` has put it"
    )
