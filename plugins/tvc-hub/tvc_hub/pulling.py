"""Fetch a model from a hub: what it holds is looked at before it is fetched, and what was fetched
before it is kept.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from tvc_core import (
    Registry,
    TvcError,
    WeightsError,
    check_header,
    check_target,
    describe_file,
    join_names,
    short_repr,
    write_file,
)

from .errors import HubError, UnreachableError
from .naming import address_of, cache_folder, is_commit, is_plain, repository_of, token_for
from .reading import CutError, Hub, Listing, Stated

__all__ = ["CODE", "MODEL", "Pulled", "pull"]

MODEL = "model.safetensors"

CODE = {
    ".bat", ".bin", ".ckpt", ".cmd", ".dill", ".dll", ".dylib", ".egg", ".exe", ".h5", ".jar",
    ".joblib", ".js", ".keras", ".npy", ".npz", ".pickle", ".pkl", ".ps1", ".pt", ".pth", ".py",
    ".pyc", ".pyd", ".pyz", ".sh", ".so", ".t7", ".whl",
}  # fmt: skip
"""Ends of the names of files that are code, or can hold some that runs when they are opened."""

_MOST_HEADER = 10 << 20
"""Of a header [bytes]; tvc_core reads no longer ones."""
_TRIES = 3
_DAY = 86_400.0

_CHOSEN = "model.txt"
"""Beside what was pulled of a commit: the name here of what is its model where no file is named."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A model that is here now. It can be given to `tvc_core.load` and `open` as a path.

    Args:
        path: the file.
        repository: as "user/name".
        commit: what was pulled, all 40 digits.
        fetched: whether it was fetched now; otherwise it was here from before.
        before: the commit that this revision was at when it was pulled last.
    """

    path: Path
    repository: str
    commit: str
    fetched: bool
    before: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)


def pull(
    name: str,
    *,
    out: str | Path | None = None,
    force: bool = False,
    file: str | None = None,
    max_params: int | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    offline: bool = False,
    registry: Registry | None = None,
) -> Pulled:
    """Fetch a model from a hub, or take it from the cache. Nothing in it is run.

    The revision is turned into a commit once. The file's header is fetched first and compared with
    the network that its recipe names; the rest only if that fits; and the file is kept only if its
    hashes, the hub's and its own, are right.

    Args:
        name: "user/name", or "user/name@revision" with a branch, tag or commit.
        out: write a copy here; otherwise `path` of the result is in the cache.
        force: let `out` take the place of a file that exists.
        file: the model's file in the repository. By default "model.safetensors", or the only
            .safetensors file; and then a repository that has files that can hold code is refused.
        max_params: parameters that the model may have [parameters].
        endpoint: address of the hub; by default HF_ENDPOINT, or https://huggingface.co.
        token: who asks; by default HF_TOKEN, or for the default endpoint that of a login.
        hosts: other hosts that the hub keeps files at; they get no token.
        offline: ask no one, and take what was pulled before.
        registry: where the names of the recipe are looked up; by default what is installed.

    Raises:
        ParameterError: `out` cannot be written.
        HubError: the hub does not answer, or refuses, or the repository is refused.
        WeightsError: the file is damaged or larger than allowed, or does not fit its own recipe.
        UnknownNameError: it needs a plugin that is not installed.
    """
    repository, revision = repository_of(name)
    address = address_of(endpoint, hosts)
    if out is not None:
        out = Path(out)
        check_target(out, force=force, suffix=".safetensors")
    host = quote(urlsplit(address.url).netloc + urlsplit(address.url).path, safe="")
    folder = cache_folder() / host / repository.replace("/", "--")
    wanted = revision or "main"
    known = folder / "refs" / f"{quote(wanted, safe='')}.txt"
    before = _commit_in(known)
    commit = wanted if is_commit(wanted) else None
    kept = partial(_kept, folder, max_params, registry)
    if (offline or commit) and (found := kept(commit or before, file)):
        return _result(found, out, repository, commit or before, before)
    if offline:
        raise HubError(f"{name}: was not pulled before, so offline there is nothing to take")
    hub = Hub(address=address, token=token_for(address, token))
    try:
        listing = hub.listing(repository, wanted)
    except UnreachableError as error:
        if found := kept(commit or before, file):
            said = str(error).rstrip(".")
            warnings.warn(
                f"{said}. What was pulled before is taken: {repository}@{before}", stacklevel=2
            )
            return _result(found, out, repository, commit or before, before)
        raise
    if listing.name != repository:
        warnings.warn(
            f"{repository}: the hub has it under another name now, "
            f"{short_repr(listing.name)[1:-1]}",
            stacklevel=2,
        )
    chosen = _chosen(listing, repository, file)
    found = kept(listing.commit, chosen)
    fetched = found is None
    if found is None:
        found = folder / "commits" / listing.commit / quote(chosen, safe="")
        _fetch(hub, repository, listing, chosen, found, max_params, registry)
    if file is None:
        chosen_here = found.with_name(_CHOSEN)
        with _disk(chosen_here):
            write_file(chosen_here, [found.name.encode()])
    if not is_commit(wanted):
        with _disk(known):
            write_file(known, [listing.commit.encode()])
    return _result(found, out, repository, listing.commit, before, fetched)


# -- what is here ----------------------------------------------------------------------------------


def _kept(
    folder: Path, most: int | None, registry: Registry | None, commit: str | None, file: str | None
) -> Path | None:
    """Return a file that was pulled before and is whole: the one that is named, or else the one
    that was the model's.
    """
    if commit is None:
        return None
    home = folder / "commits" / commit
    # other files of the commit may be here as well, each of which was named when it was pulled
    name = _said_in(home / _CHOSEN) if file is None else quote(file, safe="")
    found = home / name
    if not name or not found.is_file():
        return None
    try:
        describe_file(found, registry=registry)
    except WeightsError:
        return None  # damaged since, so it is fetched again
    check_header(found, max_params=most, registry=registry)
    return found


def _commit_in(path: Path) -> str | None:
    said = _said_in(path)
    return said if is_commit(said) else None


def _said_in(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="ascii").strip()
    return ""


def _result(
    found: Path,
    out: Path | None,
    repository: str,
    commit: str | None,
    before: str | None,
    fetched: bool = False,
) -> Pulled:
    assert commit is not None
    if out is not None:
        with _disk(out), found.open("rb") as source:
            write_file(out, iter(lambda: source.read(1 << 20), b""))
    return Pulled(
        path=out or found, repository=repository, commit=commit, fetched=fetched, before=before
    )


# -- what there is ---------------------------------------------------------------------------------


def _chosen(listing: Listing, repository: str, file: str | None) -> str:
    """Return the name of the model's file, after all names were looked at."""
    what = f"{repository}@{listing.commit}"
    for name in listing.files:
        if not is_plain(name):
            raise HubError(f"{what}: lists {short_repr(name)}, which is no name inside a folder")
    models = [name for name in listing.files if name.endswith(".safetensors")]
    if file is not None:
        if file not in listing.files:
            raise HubError(f"{what}: has no file {short_repr(file)}; it has {_names(listing)}")
        if not file.endswith(".safetensors"):
            raise HubError(f"{what}: {file} is no .safetensors file, and nothing else is read")
        return file
    code = [name for name in listing.files if PurePosixPath(name).suffix.lower() in CODE]
    if code:
        raise HubError(
            f"{what}: has files that are code or can hold some: {join_names(code)}. A repository "
            "of 'tvc push' has none, so nothing is taken from this one. To take its model alone, "
            f"say which file that is: --file {models[0] if models else MODEL}, or file=..."
        )
    if MODEL in models:
        return MODEL
    if len(models) != 1:
        raise HubError(
            f"{what}: has {len(models) or 'no'} .safetensors files and none is called {MODEL}"
            + (f": say which, by --file: {join_names(models)}" if models else "")
            + ("" if models else f"; it has {_names(listing)}")
        )
    return models[0]


def _names(listing: Listing) -> str:
    return join_names([short_repr(name)[1:-1] for name in listing.files])


# -- fetching --------------------------------------------------------------------------------------


def _fetch(
    hub: Hub,
    repository: str,
    listing: Listing,
    name: str,
    target: Path,
    max_params: int | None,
    registry: Registry | None,
) -> None:
    """Fetch a file to its place, its header first."""
    what = f"{repository}@{listing.commit[:12]}: {name}"
    stated = hub.stated(repository, listing, name)
    url, size = hub.url(repository, listing.commit, name), stated.size
    first = b"".join(hub.read(url, what, 0, min(8, size), size))
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= size - 8:
        raise HubError(f"{what}: no safetensors file, since it does not begin as one: {first!r}")
    if length > _MOST_HEADER:
        raise HubError(
            f"{what}: its header has {length:,} bytes, and at most {_MOST_HEADER:,} are read"
        )
    with _disk(target), _draft(target) as (draft, file), _called(draft, what):
        file.write(first)
        header = b"".join(hub.read(url, what, 8, 8 + length, size))
        if b'"tvc"' not in header:
            raise HubError(
                f"{what}: holds tensors and no recipe, so it is no model that tvc saved, and "
                "nothing says of which network they are. Fetch it by other means, and then "
                "tvc_core.partial_load(model, FILE) takes the tensors"
            )
        file.write(header)
        file.flush()
        # The file gets its length, which takes no room yet, so that the header can be compared
        # with it, and with the network, as that of a file which is whole.
        file.truncate(size)
        check_header(draft, max_params=max_params, registry=registry)
        if (free := shutil.disk_usage(draft.parent).free) < size:
            raise HubError(f"{what}: has {size:,} bytes, and {draft.parent} has room for {free:,}")
        at = 8 + length
        for attempt in range(_TRIES):
            try:
                for piece in hub.read(url, what, at, size, size):
                    file.write(piece)
                    at += len(piece)
                break
            except CutError:
                if attempt == _TRIES - 1:
                    raise
        file.flush()
        os.fsync(file.fileno())
        file.close()
        _compare(draft, stated, what)
        describe_file(draft, registry=registry)
        draft.replace(target)


def _compare(path: Path, stated: Stated, what: str) -> None:
    """Compare a file with the hash that the hub has for it."""
    git = f"blob {stated.size}\0".encode()
    digests = [hashlib.sha256()] if stated.sha256 else [hashlib.sha1(git), hashlib.sha1()]
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for digest in digests:
                digest.update(chunk)
    found = [digest.hexdigest() for digest in digests]
    wanted = stated.sha256 or stated.blob
    if wanted is not None and wanted not in found:
        raise HubError(
            f"{what}: its hash is {found[0]}, and the hub says {short_repr(wanted)}: it was "
            "changed on the way, or there, and is not kept"
        )


@contextmanager
def _called(draft: Path, what: str) -> Iterator[None]:
    """Let errors name the file as the user knows it."""
    try:
        yield
    except TvcError as error:
        if str(draft) not in (said := str(error)):
            raise
        raise type(error)(said.replace(str(draft), what)) from error


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Write inside; what the system refuses is an error that names the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise HubError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def _draft(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a file beside the target, which is gone afterwards unless it was moved there."""
    for other in target.parent.glob(f".{target.name[:100]}.*.part"):  # of who was killed
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > _DAY:
                other.unlink()
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            yield draft, file
    finally:
        draft.unlink(missing_ok=True)
