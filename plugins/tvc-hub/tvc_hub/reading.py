"""Read from a hub, and from nowhere else.

Requests go through the session of huggingface_hub, which has the user's proxies and certificates,
one by one: a redirect is looked at before it is followed, the token goes to the hub alone, and no
more is read than was asked for. The client's own functions for files follow redirects anywhere, and
ask other addresses besides (for a list of programs that it reports, and for the Xet protocol).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from tvc_core import foreign, short_repr

from .errors import HubError, UnreachableError
from .naming import Address, is_commit, origin_of

__all__ = ["CutError", "Hub", "Listing", "Stated", "refusal"]

_MOST_REDIRECTS = 5
_MOST_JSON = 10 << 20
"""Of an answer that is no file [bytes]."""
_TIMEOUT = 30.0
"""Wait for a connection, or for the next bytes [s]."""

_REASONS = {
    401: "wants a token that it knows: log in by 'hf auth login', or set HF_TOKEN",
    400: "does not accept what was sent",
    403: "does not let this token do that",
    409: "has other content there by now: try again",
    404: "has none of this name, or shows it only to those who may read it, by their token",
    416: "does not have the bytes that were asked for",
    429: "has had too many requests: wait a while",
}


class CutError(HubError):
    """The connection was cut before all bytes were there."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a repository holds at a commit.

    Args:
        commit: of the revision that was asked for.
        files: what the hub says of each file, by its name.
        name: of the repository as the hub has it, which another one may lead to.
    """

    commit: str
    files: dict[str, dict[str, Any]]
    name: str


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a hub says of a file before it is fetched.

    Args:
        size: its length [bytes].
        sha256: its hash, where it is a large file.
        blob: its name among git's objects, where it is none.
    """

    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A hub, and who asks.

    Args:
        address: where it is.
        token: who asks; None asks as a stranger.
    """

    address: Address
    token: str | None

    def listing(self, repository: str, revision: str) -> Listing:
        """Return what a repository holds.

        Raises:
            UnreachableError: no answer comes.
            HubError: it is not there, or the answer is none.
        """
        what = f"{repository}@{revision}"
        url = f"{self.address.url}/api/models/{repository}/revision/{quote(revision, safe='')}"
        with (
            foreign(UnreachableError, f"{self.address.url} cannot be reached"),
            self._answer("GET", f"{url}?blobs=true", what, files=False) as response,
        ):
            data = b"".join(_limited(response, _MOST_JSON, what))
        try:
            said = json.loads(data)
            commit, listed = said["sha"], said["siblings"]
            files = {each["rfilename"]: dict(each) for each in listed}
            fine = is_commit(commit) and all(isinstance(name, str) for name in files)
            fine = fine and len(files) == len(listed)
        except (ValueError, TypeError, KeyError, RecursionError):
            fine = False
        if not fine:
            raise HubError(f"{self.address.url}: its answer about {what} is not that of a hub")
        if is_commit(revision) and commit != revision:
            raise HubError(
                f"{what}: the hub says that this is the commit {commit}. A commit does not move, "
                "so nothing is read from there"
            )
        name = said.get("id")
        return Listing(
            commit=commit, files=files, name=name if isinstance(name, str) else repository
        )

    def stated(self, repository: str, listing: Listing, name: str) -> Stated:
        """Return what the hub says of a file, in its list and in the headers of an answer.

        Raises:
            HubError: the file is of another commit, or the two do not say the same.
        """
        what = f"{repository}@{listing.commit}: {name}"
        found: dict[str, str] = {}
        url = self.url(repository, listing.commit, name)
        with (
            foreign(HubError, f"{what} cannot be read"),
            self._answer("HEAD", url, what, seen=found),
        ):
            pass
        commit = found.get("x-repo-commit", listing.commit)
        if commit != listing.commit:
            raise HubError(f"{what}: the hub answers with the commit {short_repr(commit)}")
        listed, tags = listing.files[name], [found.get("x-linked-etag", ""), found.get("etag", "")]
        large = listed["lfs"] if isinstance(listed.get("lfs"), dict) else {}
        sizes = {
            "its answer": found.get("x-linked-size") or found.get("content-length"),
            "its list": listed.get("size"),
            "the list of large files": large.get("size"),
        }
        hashes = {
            "its answer": next((t for t in map(_bare, tags) if len(t) == 64), None),
            "the list of large files": large.get("sha256") or large.get("oid"),
        }
        size, sha256 = _agreed(what, "size", sizes), _agreed(what, "SHA-256", hashes)
        if size is None or not re.fullmatch(r"[0-9]{1,15}", size):
            raise HubError(f"{what}: the hub does not say its size: {short_repr(size)}")
        blob = None if sha256 else listed.get("blobId")
        return Stated(size=int(size), sha256=sha256, blob=None if blob is None else str(blob))

    def url(self, repository: str, commit: str, name: str) -> str:
        """Return where a file is."""
        return f"{self.address.url}/{repository}/resolve/{commit}/{quote(name)}"

    def read(self, url: str, what: str, start: int, stop: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of a part of a file, all of them and no more.

        Args:
            url: where it is.
            what: how errors call it.
            start: of the first byte.
            stop: after the last byte.
            size: of the whole file [bytes].

        Raises:
            CutError: the connection was cut before.
            HubError: it cannot be read, or the hub sends something other.
        """
        if start == stop:
            return
        left, skip, unit = stop - start, 0, {"range": f"bytes={start}-{stop - 1}"}
        try:
            with self._answer("GET", url, what, headers=unit) as response:
                if response.status_code == 206:
                    said = response.headers.get("content-range", "")
                    if not re.fullmatch(rf"bytes {start}-\d+/(?:{size}|\*)", said):
                        raise HubError(
                            f"{what}: the hub sends {short_repr(said)}, and bytes {start} to "
                            f"{stop - 1} of {size} were asked for"
                        )
                else:  # it knows no ranges, and sends all
                    skip = start
                for chunk in response.iter_raw():
                    skipped = min(skip, len(chunk))
                    skip -= skipped
                    piece = chunk[skipped : skipped + left]
                    left -= len(piece)
                    if piece:
                        yield piece
                    if not left:
                        return
        except HubError:
            raise
        except Exception as error:  # of the transport, whose classes the client's version decides
            raise CutError(
                f"{what}: {stop - start - left:,} of {stop - start:,} bytes came, then: "
                f"{type(error).__name__}: {error}"
            ) from error
        raise CutError(f"{what}: {stop - start - left:,} of {stop - start:,} bytes came")

    @contextmanager
    def _answer(
        self,
        method: str,
        url: str,
        what: str,
        *,
        files: bool = True,
        headers: dict[str, str] | None = None,
        seen: dict[str, str] | None = None,
    ) -> Iterator[Any]:
        """Send a request and those that its answers redirect to.

        Args:
            method: of HTTP.
            url: where it goes.
            what: how errors call it.
            files: whether files are asked for, which may lie at other addresses.
            headers: more of them.
            seen: takes the headers of all answers, of which the first says what counts; for
                these alone no other address is asked.
        """
        from huggingface_hub import get_session

        allowed = self.address.may_store if files else self.address.is_own
        for _ in range(_MOST_REDIRECTS):
            session = get_session()
            sent = {"accept-encoding": "identity", "user-agent": "tvc-hub", **(headers or {})}
            if self.token and self.address.is_own(url):
                sent["authorization"] = f"Bearer {self.token}"
            request = session.build_request(method, url, headers=sent, timeout=_TIMEOUT)
            if origin_of(str(request.url)) != origin_of(url):
                raise HubError(f"{what}: {short_repr(url)} is not read the same way by all")
            response = session.send(request, stream=True, follow_redirects=False)
            try:
                if seen is not None:
                    for key, value in response.headers.items():
                        seen.setdefault(key.lower(), value)
                if response.status_code not in (301, 302, 303, 307, 308):
                    self._check(response, what)
                    yield response
                    return
                target = _target(url, response.headers.get("location", ""))
                if target is None:
                    raise HubError(f"{what}: the hub sends its readers on, and not to an address")
                if not allowed(target):
                    raise HubError(
                        f"{what}: the hub sends its readers on to {short_repr(_host(target))}, "
                        f"which is not where it keeps files ({self.address.url}), so that is not "
                        "followed. If you trust that host: --host, or hosts=(...)"
                    )
                if seen is not None and "x-linked-size" in seen and not self.address.is_own(target):
                    yield response
                    return
                if seen is not None:  # the length is that of the redirect
                    seen.pop("content-length", None)
                url = target
            finally:
                response.close()
        raise HubError(f"{what}: the hub redirects more than {_MOST_REDIRECTS} times")

    def _check(self, response: Any, what: str) -> None:
        status = response.status_code
        if not 200 <= status < 300:
            said, wait = (
                response.headers.get(key, "") for key in ("x-error-message", "retry-after")
            )
            raise HubError(f"{what}: {refusal(self.address, status, said, wait)}")
        if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise HubError(f"{what}: the hub packs what it sends, which was not asked for")


def refusal(address: Address, status: int, said: str, wait: str) -> str:
    """Say why a hub refuses.

    Args:
        address: of the hub.
        status: of HTTP.
        said: the hub's own reason, where it has one.
        wait: its header Retry-After, of which seconds are told.
    """
    reason = _REASONS.get(status, "has an error of its own" if status >= 500 else "refuses")
    if wait.isdecimal():
        reason += f", {wait[:9]} seconds"
    shown = "".join(each if each.isprintable() else " " for each in said[:300])
    return f"{status}: the hub {address.url} {reason}" + (shown and f". It says: {shown}")


def _limited(response: Any, most: int, what: str) -> Iterator[bytes]:
    for chunk in response.iter_raw():
        most -= len(chunk)
        if most < 0:
            raise HubError(f"{what}: the hub's answer is too long to be one")
        yield chunk


def _agreed(what: str, of: str, said: dict[str, Any]) -> str | None:
    """Return what all say who say something."""
    known = {by: str(each) for by, each in said.items() if each is not None}
    if len({*known.values()}) > 1:
        texts = " and ".join(f"{short_repr(each)} by {by}" for by, each in known.items())
        raise HubError(f"{what}: the hub says that its {of} is {texts}, so nothing is fetched")
    return next(iter(known.values()), None)


def _target(url: str, location: str) -> str | None:
    """Return where an answer redirects to, if that is an address."""
    with suppress(ValueError):
        target = urljoin(url, location)
        origin_of(target)
        return target if location else None
    return None


def _bare(tag: str) -> str:
    return tag.removeprefix("W/").strip('"').lower()


def _host(url: str) -> str:
    scheme, host, port = origin_of(url)
    return f"{scheme}://{host}:{port}" if host else url
