"""Where downloaded weights are kept: the folders of TVC_WEIGHTS_PATH, which are only read, and then
torch.hub's folder; for hub names the hub's own.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from ..errors import WeightsError, foreign
from .download import download

__all__ = ["cached_file", "hash_in_name", "shared_folders"]

HUB = "hf"
"""Scheme of an address on the Hugging Face hub, as its own tools write it:
hf://OWNER/NAME[@REVISION]/FILE.
"""
SHARED = "TVC_WEIGHTS_PATH"


def hash_in_name(name: str) -> str | None:
    """Return the start of the SHA-256 that an official file name carries, as in
    resnet50-11ad3fa6.pth.
    """
    found = re.search(r"-([a-f0-9]{8,64})\.[A-Za-z0-9]+$", name)
    return found.group(1) if found else None


def cached_file(url: str, sha256: str | None = None, *, progress: bool = True) -> Path:
    """Return the file of an address: from a folder of TVC_WEIGHTS_PATH, else from
    $TORCH_HOME/hub/checkpoints, downloaded first where neither has it; or from the cache of
    huggingface_hub.

    Args:
        url: as in `WeightsSpec.url`.
        sha256: what the file must have; by default what its name says. A download with another hash
            is not kept; a file that is there is not looked at.
        progress: show it on stderr.

    Raises:
        WeightsError: the file is not available, or what has its name is no file.
    """
    if urlparse(url).scheme == HUB:
        return _from_hub(url)
    name = PurePosixPath(urlparse(url).path).name
    promised = hash_in_name(name)
    if sha256 is not None and not (promised and sha256.lower().startswith(promised)):
        # torch.hub keeps files of all addresses in one folder, and many are named "model.pth"
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
        name = f"{stem}-{sha256[:8].lower()}{suffix}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    for place in (*(folder / name for folder in shared_folders()), path):
        try:
            mode = place.stat().st_mode  # asked once: another process may put the file there now
        except (OSError, ValueError):  # it is not there, or its folder cannot be read
            continue
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device never ends
            raise WeightsError(f"{place}: is no regular file. Delete it and build again")
        return place
    download(url, path, sha256.lower() if sha256 else promised, progress=progress)
    return path


def shared_folders() -> Iterator[Path]:
    """Yield the folders that TVC_WEIGHTS_PATH names, and of one that is a TORCH_HOME the folder of
    its files; one that is not there is warned of.
    """
    for entry in filter(None, os.environ.get(SHARED, "").split(os.pathsep)):
        folder = Path(os.path.expanduser(entry))  # noqa: PTH111  which leaves ~ghost as it is
        if folder.is_dir():
            yield folder
            yield folder / "hub" / "checkpoints"
        else:
            warnings.warn(
                f"{SHARED} names {entry!r}, which is no folder: no weights are looked for there",
                UserWarning,
                stacklevel=2,
            )


def _from_hub(url: str) -> Path:
    owner, name, file = url.partition("://")[2].split("/", 2)
    name, _, revision = name.partition("@")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise WeightsError(
            f"{url} is on the Hugging Face hub, and huggingface_hub is not installed: pip install "
            "huggingface_hub, or pass weights=None to start from random weights"
        ) from error
    advice = "Look whether the hub can be reached, or pass weights=None."
    with foreign(WeightsError, f"{url} cannot be downloaded", advice=advice):
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision or None))
