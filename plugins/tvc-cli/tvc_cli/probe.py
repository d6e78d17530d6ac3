"""Load each plugin in a process of its own.

`look_at` starts the processes, and `load` runs in them. A plugin that ends the process, crashes it
or holds it up for ever costs that process only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

__all__ = ["load", "look_at"]

_AT_ONCE = 4
_GRACE = 60.0
"""What a process may take beyond the time limit of the plugin's import, which the core keeps itself
[s].
"""


def look_at(owners: Iterable[str], import_timeout: float) -> dict[str, list[dict[str, Any]]]:
    """Return, for each owner, what `facts.plugin_facts` says of its plugins, each loaded in a fresh
    process.

    They have besides: "changes", what loading it did to the process and tvc does not put back;
    "heavy", the large packages that loading brought along; and "offers", names by kind.

    A plugin that offers something of another's kind is looked at again, beside the plugins that
    define kinds: alone it may be faulty, or offer less.

    Args:
        owners: distributions with plugins.
        import_timeout: what a plugin's import may take [s].
    """
    owners, limit = list(owners), import_timeout + _GRACE
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        seen = dict(zip(owners, pool.map(lambda owner: _ask(owner, limit), owners), strict=True))
        defining = [owner for owner, facts in seen.items() if any(f.get("kinds") for f in facts)]
        again = [
            owner
            for owner, facts in seen.items()
            if any(f.get("unknown_hooks") or "unknown hook" in (f["error"] or "") for f in facts)
        ]
        found = pool.map(lambda owner: _ask(owner, limit, defining), again)
        return seen | dict(zip(again, found, strict=True))


def _ask(owner: str, limit: float, beside: Iterable[str] = ()) -> list[dict[str, Any]]:
    others = [other for other in beside if other != owner]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from tvc_cli.probe import load; "
        f"load({owner!r}, {limit!r}, {others!r})"
    )
    # not -m, which would look into the current folder first
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    environment = {**os.environ, "TVC_ONLY": owner, "TVC_DISABLE": "", "TVC_STRICT": "0"}
    # files, not pipes: a pipe stays open while anything lives that the plugin has started
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=limit + 10,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:  # not even its own watch could end it
            status = None
        printed, said = (_read(file) for file in (out, err))
    with contextlib.suppress(ValueError):  # nothing, or half of it, was printed
        return list(json.loads(printed))
    if status is None or "Timeout (" in said:
        return [_lost(f"did not come back within {limit:g} s, and could not be interrupted", said)]
    if status < 0:
        return [_lost(f"crashed the process that loaded it ({signal.Signals(-status).name})", said)]
    return [_lost(f"ended the process that loaded it (exit code {status})", said)]


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _lost(error: str, said: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "traceback": said[-4000:] or None, "lost": True}


def load(owner: str, limit: float, beside: Iterable[str] = ()) -> None:
    """Load the plugins of a distribution, print their facts as JSON, and end the process.

    Args:
        owner: the distribution.
        limit: after this time the process ends [s].
        beside: distributions that are loaded before.
    """
    from .streams import results, stdout_for_results, while_running

    faulthandler.dump_traceback_later(limit, exit=True)
    with stdout_for_results(), while_running(), warnings.catch_warnings():
        # what they say of the plugin is in its facts
        warnings.filterwarnings("ignore", message="The plugin |TVC_")
        from tvc_core import Registry

        from . import facts

        # by name, since the kit is for tests and for these commands, not for plugins
        testing = importlib.import_module("tvc_core.testing")
        os.environ["TVC_ONLY"] = ",".join(beside) or "tvc-core"
        Registry()
        os.environ["TVC_ONLY"] = ",".join([owner, *beside])
        watch = testing.ProcessWatch()
        registry = Registry()
        heavy, changes = watch.heavy(), watch.changes()
        found = [
            {
                **facts.plugin_facts(info, registry),
                "changes": changes,
                "heavy": heavy,
                "offers": facts.offers_of(info),
                "unknown_hooks": info.unknown_hooks,
            }
            for info in registry.plugins
            if info.owner == owner
        ]
        os.write(results().fileno(), json.dumps(found).encode())
    os._exit(0)  # a plugin's threads, or what it registered for the end, do not matter here
