"""Builds from a cached file of weights against torchvision's own, as ratios of paired runs in turn.

`python tests/bench/builds.py [NAME ...]` measures these networks, or all of torchvision's
classifiers, each in processes of its own, on made-up files whose names carry their hashes. A build
ends when every parameter has been read once. Prints a table and asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

from tvc_core import HybridBuilder
from tvc_core.testing import official_weights

PATCHES = {"stage:-1": {"wrap": "eca"}, "stage:-2": {"wrap": "eca"}}


def seconds(build: Callable[[], nn.Module]) -> tuple[float, float]:
    """Return what a build takes until its parameters have been read, on the wall and of the
    processor [s].
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for parameter in build().parameters():
        parameter.detach().sum()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_above(build: Callable[[], nn.Module]) -> int:
    """Return the most memory of the process during a build, above that before [bytes]."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    model = build()
    peak = _memory("VmHWM") - before
    del model
    return peak


def _memory(entry: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{entry}:")[2].split()[0]) * 1024


def measure(name: str, home: Path, runs: int) -> dict[str, Any]:
    """Return the figures of one network in this process, whose cache of tvc is empty."""
    builder = HybridBuilder()
    with official_weights(home, name, verify=True) as files:
        size = files[name].stat().st_size

        def theirs() -> nn.Module:
            return torchvision.models.get_model(name, weights="DEFAULT")

        def ours() -> nn.Module:
            return builder.from_torchvision(name)

        def patched() -> nn.Module:
            return builder.from_torchvision(name, patches=PATCHES)

        time.sleep(0.2)  # a file that was written a moment ago is not remembered
        first = seconds(ours)
        rows = [(seconds(theirs), seconds(ours), seconds(patched)) for _ in range(runs + 1)][1:]
        peak = peak_above(ours) / size if sys.platform == "linux" else math.nan
    both = {
        f"{kind} {clock}": statistics.median(row[0][at] / row[column][at] for row in rows)
        for at, clock in enumerate(("wall", "cpu"))
        for column, kind in ((1, "plain"), (2, "patched"))
    }
    took = {kind: statistics.median(row[at][0] for row in rows) for at, kind in enumerate(_KINDS)}
    return {**both, **took, "first": first[0], "peak": peak, "bytes": size}


_KINDS = ("theirs", "ours", "patched")


def fresh(name: str, home: Path, whose: str) -> dict[str, Any]:
    """Return what the first build of this process takes [s]."""
    with official_weights(home, name, verify=True):
        if whose == "ours":
            builder = HybridBuilder()
            return {"fresh": seconds(lambda: builder.from_torchvision(name))[0]}
        return {"fresh": seconds(lambda: torchvision.models.get_model(name, weights="DEFAULT"))[0]}


@contextmanager
def folders() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder for a network's file, and the environment in which tvc remembers there."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), {**os.environ, "XDG_CACHE_HOME": f"{folder}/remembered"}


def in_process(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run this script for one network, and return its figures."""
    run = [sys.executable, __file__, *arguments]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(names: list[str], runs: int) -> None:
    """Measure and print."""
    columns = ("theirs [s]", "ours [s]", "ratio", "cpu", "patched", "fresh process", "first [s]")
    table = Table("network", *columns, "peak / file")
    found: dict[str, list[float]] = {}
    for name in names:
        with folders() as (home, environment):
            row = in_process(environment, name, "--in", str(home), "--runs", str(runs))
            both = [
                in_process(environment, name, "--in", str(home), "--fresh", whose)["fresh"]
                for whose in ("theirs", "ours")
            ]
        row["fresh"] = both[0] / both[1]
        for key in ("plain wall", "plain cpu", "patched wall", "fresh", "peak"):
            found.setdefault(key, []).append(row[key])
        shown = [row["theirs"], row["ours"], row["plain wall"], row["plain cpu"]]
        shown += [row["patched wall"], row["fresh"], row["first"], row["peak"]]
        table.add_row(name, *(f"{value:.3g}" for value in shown))
        print(name, " ".join(f"{value:.3g}" for value in shown), file=sys.stderr, flush=True)
    console = Console(width=140)
    console.print(table)
    console.print(f"peak / file: at most {max(found.pop('peak')):.3g}")
    for key, values in found.items():
        mean = statistics.geometric_mean(values)
        console.print(f"{key}: geometric mean {mean:.3g}, from {min(values):.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--in", dest="home", type=Path, help="measure one network here")
    parser.add_argument("--fresh", choices=("ours", "theirs"), help="only the first build")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.home is None:
        main(given.names or HybridBuilder.list_backbones(origin="torchvision"), given.runs)
    elif given.fresh:
        print(json.dumps(fresh(given.names[0], given.home, given.fresh)))
    else:
        print(json.dumps(measure(given.names[0], given.home, given.runs)))
