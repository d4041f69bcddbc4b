"""Checkpoints of the Hugging Face hub: hf://OWNER/NAME[@REVISION].

huggingface_hub fetches them whole into its own cache; no other file knows that library. A revision
is resolved to a commit once per process, so that all files are of one commit.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from recycler.errors import InfrastructureError, Problem, UsageError

_URL = re.compile(r"hf://(?P<repo>[\w.\-]+/[\w.\-]+)(@(?P<revision>[\w.\-/]+))?/?")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@lru_cache(maxsize=256)
def hub_folder(url: str) -> Path:
    """A local folder with the repository's weights and small files.

    Raises UsageError or InfrastructureError.
    """
    # heavy, and only needed where the hub is: the CLI starts without it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(
            Problem(
                thing=url,
                cause="is not a repository of the hub",
                remedy="Write hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
            )
        )
    try:
        return Path(
            snapshot_download(
                match["repo"], revision=match["revision"], allow_patterns=list(_WANTED)
            )
        )
    except LocalEntryNotFoundError as error:
        raise InfrastructureError(
            Problem(
                thing=url,
                cause=f"cannot be reached ({str(error)[:200]})",
                remedy="Try again, or give a local folder",
            )
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UsageError(
            Problem(
                thing=url,
                cause="is not there, or not open to you",
                remedy="Check owner, name and revision; set HF_TOKEN for a private one",
            )
        ) from None
    except OSError as error:  # connections, proxies, a full disk
        raise InfrastructureError(
            Problem(
                thing=url,
                cause=f"could not be fetched ({str(error)[:200]})",
                remedy="Try again, or give a local folder",
            )
        ) from None
