"""A model into a repository of the hub: what would be uploaded is made and checked first, and can be looked at."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.checkpoints import manifest, readme, store
from belvedere.errors import InputError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
Upload = Callable[["Plan"], str]
"""Sends a plan; returns the address of what was made."""


class Plan(NamedTuple):
    """What is uploaded, and where to."""

    repository: str
    """OWNER/NAME."""
    folder: Path
    files: dict[str, int]
    """Names and bytes."""
    digest: str
    private: bool

    @property
    def message(self) -> str:
        """Of the commit."""
        return f"Belvedere model {self.digest[:12]}"


def plan(name_or_path: str, repository: str, *, private: bool = False) -> Plan:
    """Return what an upload of a model to OWNER/NAME sends: every file of its manifest, and nothing else.

    Raises ``InputError`` for a model without card or manifest, or that is not as they say: nobody should get it.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InputError(f"--to {repository!r}: write OWNER/NAME")
    folder = store.resolve(name_or_path)
    if wrong := store.faults(folder):
        raise InputError(f"model {name_or_path} is not pushed: {wrong[0]}")
    if not (folder / readme.NAME).is_file() or "digest" not in store.card(folder):
        raise InputError(f"model {name_or_path} is not pushed: it has no card with a digest; export it first")
    listed = {name: entry.bytes for name, entry in manifest.read(folder).items()}
    files = listed | {manifest.NAME: (folder / manifest.NAME).stat().st_size}
    return Plan(repository, folder, dict(sorted(files.items())), store.card(folder)["digest"], private)


def push(made: Plan, upload: Upload | None = None) -> str:
    """Upload a plan, by default through huggingface_hub with the token it knows; return the address.

    Raises ``InputError`` with the hub's reason when it refuses.
    """
    try:
        return (upload or _upload)(made)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"{made.repository}: the hub did not take it ({reason}); log in with 'hf auth login'"
        ) from error


def _upload(made: Plan) -> str:
    from huggingface_hub import HfApi

    hub: Any = HfApi(library_name="belvedere")
    hub.create_repo(made.repository, private=made.private, exist_ok=True)
    done = hub.upload_folder(
        repo_id=made.repository,
        folder_path=made.folder,
        allow_patterns=list(made.files),
        commit_message=made.message,
    )
    return str(done)
