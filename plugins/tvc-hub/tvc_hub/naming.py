"""What users write: `user/name@revision`, and where the hub is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tvc_core import foreign, short_repr

from .errors import HubError

__all__ = [
    "Address", "address_of", "cache_folder", "is_commit", "is_plain", "origin_of", "repository_of",
    "token_for",
]  # fmt: skip

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"(?!.*\.\.)[\w+-][\w.+-]*(?:/[\w+-][\w.+-]*)*", re.ASCII)
"""As git names branches and tags, without characters that addresses read otherwise: a revision "."
would be that of the main branch.
"""
_LOCAL = ("127.0.0.1", "localhost", "::1")

_STORAGE = {"huggingface.co": (".huggingface.co", ".hf.co", ".amazonaws.com")}
"""Where hubs keep files besides their own host: the ends of names of hosts."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a hub is.

    Args:
        url: of its API, without a slash at the end.
        hosts: other hosts that its files may come from and go to, over https and without the
            token; one that begins with a dot stands for all whose names end so.
    """

    url: str
    hosts: tuple[str, ...] = ()

    def is_own(self, url: str) -> bool:
        """Return whether an address is the hub's own, which alone gets the token."""
        return origin_of(url) == origin_of(self.url)

    def may_store(self, url: str) -> bool:
        """Return whether files may lie at an address."""
        if self.is_own(url):
            return True
        parts = urlsplit(url)
        host = parts.hostname or ""
        return parts.scheme == "https" and any(
            host.endswith(each) if each.startswith(".") else host == each for each in self.hosts
        )


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def address_of(endpoint: str | None, hosts: tuple[str, ...]) -> Address:
    """Return where a hub is; None is the client's own, which HF_ENDPOINT sets.

    Raises:
        HubError: that is no address of a hub.
    """
    from huggingface_hub import constants

    url = (constants.ENDPOINT if endpoint is None else endpoint).rstrip("/")
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        plain = plain and "@" not in parts.netloc and not (parts.query or parts.fragment)
    except ValueError:
        plain = False
    if not plain:
        raise HubError(
            f"{short_repr(url)} is no address of a hub, such as https://huggingface.co: say "
            "another endpoint, or set HF_ENDPOINT"
        )
    return Address(url=url, hosts=(*_STORAGE.get(parts.hostname or "", ()), *hosts))


def token_for(address: Address, given: str | None) -> str | None:
    """Return the token that a hub gets: the given one, that of HF_TOKEN, or, for the client's own
    endpoint alone, that of a login.

    Raises:
        HubError: it can be none, or would be sent in clear text.
    """
    from huggingface_hub import constants, get_token

    token = given or os.environ.get("HF_TOKEN", "").strip() or None
    # the token of a login belongs to the hub where the user logged in, and the client may renew it
    # there, which sends something to that hub
    if token is None and address.is_own(constants.ENDPOINT):
        with foreign(HubError, "the token of the login cannot be read"):
            token = get_token()
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise HubError(
            "the token has characters that no token has, such as a space: look at HF_TOKEN, or log "
            "in again by 'hf auth login'"
        )
    parts = urlsplit(address.url)
    if token is not None and parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise HubError(
            f"{address.url} would get the token in clear text, for all on the way to read: use "
            "https, or unset HF_TOKEN to go there without one"
        )
    return token


def repository_of(name: str) -> tuple[str, str | None]:
    """Return repository and revision of `user/name@revision`.

    Raises:
        HubError: it is no such name.
    """
    repository, at, revision = name.partition("@")
    parts = repository.split("/")
    fine = len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)
    if not fine or "--" in repository or ".." in repository:
        raise HubError(
            f"{short_repr(name)} is no name of a repository: that is user/name or "
            "user/name@revision, of letters, digits, and between them '-', '_' and '.', but no "
            "'--' and no '..'"
        )
    if at and not (_REVISION.fullmatch(revision) and len(revision) <= 200):
        raise HubError(
            f"{short_repr(revision)} is no revision: that is a branch, a tag or a commit"
        )
    if re.fullmatch(r"[0-9a-fA-F]{40}", revision):
        revision = revision.lower()  # a commit, in whichever case it was copied
    return repository, revision or None


def is_plain(name: str) -> bool:
    """Return whether a name is that of a file inside a folder, on any system."""
    parts = PurePosixPath(name).parts
    inside = bool(parts) and name == "/".join(parts) and not {"..", "."} & {*parts}
    return inside and name.isprintable() and not re.search(r'[\\:*?"<>|]|^[~/]', name)


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a whole commit, which cannot move."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def cache_folder() -> Path:
    """Return where pulled files are kept: $XDG_CACHE_HOME/tvc-hub, by default ~/.cache/tvc-hub.

    Raises:
        HubError: there is no home.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    advice = "Set XDG_CACHE_HOME to a folder that can be written"
    with foreign(HubError, "there is no folder to keep what is pulled", advice=advice):
        return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "tvc-hub"
