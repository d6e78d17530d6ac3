"""The client of huggingface_hub, held to what was asked of it.

By itself it reports the torch version and the program that it runs in, asks its usual endpoint for
a list of such programs whatever endpoint it was given, moves files by the Xet protocol, whose
addresses are its own, follows redirects anywhere, and verifies an upload wherever the hub says,
with the token. Each of these is off or refused while a push runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from threading import RLock
from typing import Any

from tvc_core import short_repr

from .errors import HubError, UnreachableError
from .naming import Address
from .reading import refusal

__all__ = ["client"]

_NAME = "tvc-hub"
_LFS = "application/vnd.git-lfs+json"
_OFF = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET")
_TIMEOUT = 120.0
"""Wait for the next bytes [s]; the client would wait for ever."""

_LOCK = RLock()


@contextmanager
def client(address: Address, token: str | None, what: str) -> Iterator[Any]:
    """Return a context in which an `HfApi` sends to its own hub alone, apart from the bytes of
    large files, which go without the token to where the hub keeps them.

    Args:
        address: of the hub.
        token: who asks; None asks as a stranger.
        what: what is being done, for errors.

    Raises:
        UnreachableError: no answer comes.
        HubError: the hub refuses, or sends the client elsewhere.
    """
    from huggingface_hub import HfApi, constants, set_client_factory
    from huggingface_hub.utils import _http
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    with _LOCK:
        before = {name: getattr(constants, name) for name in _OFF}
        quiet = are_progress_bars_disabled() or sys.stderr.isatty()  # as the user has it
        # the only place where the client keeps it; without it, its own default is what is put back
        factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
        try:
            for name in _OFF:
                setattr(constants, name, True)
            set_client_factory(lambda: _guarded(factory, address))
            if not quiet:
                disable_progress_bars()
            with _told(address, what):
                yield HfApi(
                    endpoint=address.url,
                    token=token or False,  # none, whatever the client would find
                    library_name=_NAME,
                    library_version=metadata.version(_NAME),
                )
        finally:
            if not quiet:
                enable_progress_bars()
            set_client_factory(factory)
            for name, value in before.items():
                setattr(constants, name, value)


def _guarded(factory: Callable[[], Any], address: Address) -> Any:
    """Return a session that looks at each request before it is sent, those after a redirect
    included.
    """

    def own(url: str) -> None:
        if not address.is_own(url):
            raise HubError(
                f"the hub {address.url} sends the client on to {short_repr(url)}, which is not its "
                "own address, so that nothing is sent there"
            )

    def look(request: Any) -> None:
        # Requests of other threads come this way as well. Those of ours have our name, also after a
        # redirect; only those that bring the parts of a large file into a store have not.
        url = str(request.url)
        if request.headers.get("user-agent", "").startswith(_NAME):
            own(url)
        if request.method == "PUT" and not address.may_store(url):
            raise HubError(
                f"the hub {address.url} wants the file at {short_repr(url)}, which is not where it "
                "keeps files, so it is not sent there. If you trust that host: --host, or "
                "hosts=(...)"
            )
        # that all parts of a large file are there is told to the hub itself, also without our name
        if request.method == "POST" and _LFS in request.headers.get("content-type", ""):
            own(url)

    session = factory()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [*hooks.get("request", []), look]}
    session.timeout = _TIMEOUT
    return session


@contextmanager
def _told(address: Address, what: str) -> Iterator[None]:
    """Turn what the client raises into an error of tvc's: the first that says more than that an
    upload failed.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # of the client and its transport, which share no class
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, HubError):
                raise HubError(f"{what}: {found}") from error
            response = getattr(found, "response", None)
            if response is not None:
                status = response.status_code
                said = response.headers.get("x-error-message") or getattr(
                    found, "server_message", None
                )
                wait = response.headers.get("retry-after", "")
                raise HubError(f"{what}: {refusal(address, status, said or '', wait)}") from error
            last, found = found, found.__cause__
        raise UnreachableError(
            f"{what}: {address.url}: {type(last).__name__}: {' '.join(str(last).split())}"
        ) from error
