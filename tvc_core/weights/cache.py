"""Where downloaded weights are kept: torch.hub's folder, or for hub names the hub's own."""

from __future__ import annotations

import re
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from ..errors import WeightsError, foreign

__all__ = ["cached_file", "hash_in_name"]

HUB = "hf"
"""Scheme of an address on the Hugging Face hub, as its own tools write it:
hf://OWNER/NAME[@REVISION]/FILE.
"""


def hash_in_name(name: str) -> str | None:
    """Return the start of the SHA-256 that an official file name carries, as in
    resnet50-11ad3fa6.pth.
    """
    found = re.search(r"-([a-f0-9]{8,64})\.[A-Za-z0-9]+$", name)
    return found.group(1) if found else None


def cached_file(url: str, sha256: str | None = None, *, progress: bool = True) -> Path:
    """Return the file of an address, downloaded first where the cache lacks it:
    $TORCH_HOME/hub/checkpoints, or the cache of huggingface_hub.

    Args:
        url: as in `WeightsSpec.url`.
        sha256: what the file must have; by default what its name says. A download with another hash
            is not kept.
        progress: show it on stderr.

    Raises:
        WeightsError: the file is not available, or is another one.
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
    if not path.exists():
        _download(url, path, sha256.lower() if sha256 else promised, progress)
    return path


def _download(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = urlparse(url).netloc or url
    try:
        torch.hub.download_url_to_file(url, str(path), sha256, progress=progress)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        if str(error).startswith("invalid hash value"):
            raise WeightsError(
                f"what {url} gives is not the file that was meant: {error}. Tell the authors of "
                "the plugin, or pass weights=None to start from random weights."
            ) from error
        raise WeightsError(
            f"{path.name} cannot be downloaded from {place}: {error}. Put the file into "
            f"{path.parent}, or pass weights=None to start from random weights."
        ) from error


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
