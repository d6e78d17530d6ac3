"""Load each plugin in a process of its own.

`look_at` starts the processes, and `load` runs in them. A plugin that ends the process, crashes it
or holds it up for ever costs that process only.
"""

from __future__ import annotations

import contextlib
import faulthandler
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

_HEAVY = ("torch", "torchvision", "timm", "tensorflow", "jax")
_AT_ONCE = 4
_GRACE = 60.0
"""What a process may take beyond the time limit of the plugin's import, which the core keeps itself
[s].
"""


def look_at(owners: Iterable[str], import_timeout: float) -> dict[str, list[dict[str, Any]]]:
    """Return, for each owner, what `facts.plugin_facts` says of its plugins, each loaded in a fresh
    process.

    They have besides: "heavy", the large packages that loading brought along, and "offers", names
    by kind.

    Args:
        owners: distributions with plugins.
        import_timeout: what a plugin's import may take [s].
    """
    owners = list(owners)
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda owner: _ask(owner, import_timeout + _GRACE), owners)
        return dict(zip(owners, found, strict=True))


def _ask(owner: str, limit: float) -> list[dict[str, Any]]:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from tvc_cli.probe import load; "
        f"load({owner!r}, {limit!r})"
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


def load(owner: str, limit: float) -> None:
    """Load the plugins of a distribution, print their facts as JSON, and end the process."""
    from .streams import results, stdout_for_results, while_running

    faulthandler.dump_traceback_later(limit, exit=True)
    with stdout_for_results():
        before = set(sys.modules)
        with while_running(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of the plugin is in its facts
            from tvc_core import Registry

            from . import facts

            registry = Registry()
            heavy = [name for name in _HEAVY if name in sys.modules and name not in before]
            found = [
                {**facts.plugin_facts(info), "heavy": heavy, "offers": facts.offers_of(info)}
                for info in registry.plugins
                if info.owner == owner
            ]
            results().write(json.dumps(found))
            results().flush()
    os._exit(0)  # a plugin's threads, or what it registered for the end, do not matter here
