"""Model folders and LoRAs from the Hugging Face hub: resumed where a download broke off, and only the files needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from headrace.checkpoints.weights import read_weights
from headrace.errors import HeadraceError, RequestError

# Published repositories hold the same transformer again as a single file, which is not wanted twice.
NEEDED = (
    "model_index.json",
    "headrace.json",
    "README.md",
    "LICENSE*",
    "scheduler/*.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "tokenizer/*.json",
)
MAX_CARD_BYTES = 2**16

Answer = TypeVar("Answer")


def page(hub_id: str) -> str:
    """Where a person reads about a repository and accepts its licence."""
    return f"https://huggingface.co/{hub_id}"


def fetch(hub_id: str) -> tuple[Path, bool]:
    """The folder with a repository's model in diffusers' layout, and whether anything had to be fetched for it.

    What is whole on this machine already is used without asking the hub. Raises RequestError when the repository does
    not exist or its licence has not been accepted, HeadraceError when it cannot be reached or stored.
    """
    folder = _stored(hub_id, NEEDED)
    if folder is not None and _is_whole(folder):
        return folder, False
    folder = _downloaded(hub_id, NEEDED)
    if not (folder / "model_index.json").is_file():
        raise RequestError(
            f"{hub_id} is not in diffusers' layout (it has no model_index.json): download its file and name that."
        )
    return folder, True


def fetch_file(
    hub_id: str, names: Sequence[str], choose: Callable[[Iterable[str]], str], beside: Sequence[str] = ()
) -> Path:
    """One weight file of a repository: what `choose` picks from the names of all its files, with those `beside` it.

    names: what it would pick first. What is on this machine already is used without asking the hub. Raises what
    `choose` raises, and otherwise as `fetch`.
    """
    for name in names:
        folder = _stored(hub_id, (name, *beside))
        if folder is not None and (folder / name).is_file():
            return folder / name
    folder = _stored(hub_id, ("*.safetensors", *beside))
    if folder is not None:
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
        if there:
            return folder / choose(there)
    name = choose(_asked(hub_id, lambda: _file_names(hub_id)))
    found = _downloaded(hub_id, (name, *beside)) / name
    if not found.is_file():
        raise RequestError(f"{hub_id} has no file {name}.")
    return found


def _file_names(hub_id: str) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(hub_id)


def _stored(hub_id: str, patterns: Sequence[str]) -> Path | None:
    """The folder with a repository's files of such names, if all of them have been downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=True))
    except HFValidationError as error:
        raise RequestError(f"{hub_id!r} cannot be a hub id, which is written owner/name.") from error
    except LocalEntryNotFoundError:
        return None


def _downloaded(hub_id: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(_asked(hub_id, lambda: snapshot_download(hub_id, allow_patterns=list(patterns))))


def _asked(hub_id: str, ask: Callable[[], Answer]) -> Answer:
    """What the hub answers. Raises RequestError or HeadraceError, as `fetch`, where it does not."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return ask()
    except GatedRepoError as error:
        raise RequestError(
            f"{hub_id} is gated: accept its licence at {page(hub_id)}, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"{hub_id} is no folder here, and not on the hub or private there: check its name, or log in with "
            "`hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise HeadraceError(
                f"{hub_id} is not on this machine yet, and HF_HUB_OFFLINE forbids fetching it."
            ) from error
        raise HeadraceError(
            f"{hub_id} is not whole on this machine, and {constants.ENDPOINT} cannot be reached: "
            "check the network and try again; what was fetched is kept."
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise RequestError(
                f"The hub refuses {hub_id}: accept its licence at {page(hub_id)} and log in with `hf auth login`."
            ) from error
        raise HeadraceError(f"{constants.ENDPOINT} did not give {hub_id}: {_first_line(error)}") from error
    except OSError as error:
        raise HeadraceError(f"{hub_id} cannot be stored: {error.strerror or _first_line(error)}.") from error
    except Exception as error:
        # The client lets its HTTP library's own errors through, which have no public name.
        raise HeadraceError(
            f"The download of {hub_id} broke off ({_first_line(error)}): try again; what was fetched is kept."
        ) from error


def card_licence(folder: Path) -> str | None:
    """The licence that a model card (README.md) names at its head, if there is one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace")
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    for field in ("license_name", "license"):
        found = re.search(rf"^{field}:[ \t]*([^\r\n]{{1,100}})$", head.group(1) if head else "", re.MULTILINE)
        if found:
            return found.group(1).strip().strip("'\"")
    return None


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "model_index.json").is_file() and not any(
            read_weights(folder / part).absent for part in ("transformer", "vae", "text_encoder")
        )
    except RequestError:
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
