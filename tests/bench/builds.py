"""Builds from a cached file of weights against torchvision's own: the figures of
docs/explanation/build-speed.md. Run by `make bench-builds`.

    python tests/bench/builds.py [NAME ...]      measure what is missing, and write the page
    python tests/bench/builds.py --again NAME    measure a network anew
    python tests/bench/builds.py --write         only write the page's tables

Every finished row is in builds.json, so a run that was stopped goes on where it was. Without names,
all of torchvision's classifiers. Files are made one network at a time, with random tensors and
names that carry their hashes, and deleted. A build ends when every parameter has been read once.
Asserts nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rows
import torch
import torchvision
from torch import nn

from tvc_core import HybridBuilder
from tvc_core.testing import official_weights

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "explanation" / "build-speed.md"
PATCHES = {"stage:-1": {"wrap": "eca"}, "stage:-2": {"wrap": "eca"}}
KINDS = ("theirs", "ours", "patched")
FRESH = 9
"""Pairs of fresh processes."""

Row = dict[str, Any]
Build = Callable[[], nn.Module]


# -- in a process of its own -----------------------------------------------------------------------


def builds_of(name: str) -> dict[str, Build]:
    """Return what is measured of a network: torchvision's build, ours, and ours with two
    patches.
    """
    builder = HybridBuilder()
    return {
        "theirs": lambda: torchvision.models.get_model(name, weights="DEFAULT"),
        "ours": lambda: builder.from_torchvision(name),
        "patched": lambda: builder.from_torchvision(name, patches=PATCHES),
    }


def seconds(build: Build) -> tuple[float, float]:
    """Return what a build takes until its parameters have been read, on the wall and of the
    processor [s].
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for parameter in build().parameters():
        parameter.detach().sum()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, runs: int) -> Row:
    """Return times of one network in this process, in which and in whose cache tvc has remembered
    nothing yet.
    """
    builds = builds_of(name)
    time.sleep(0.2)  # a file that was written a moment ago is not remembered
    first = seconds(builds["ours"])[0]
    found = [{kind: seconds(build) for kind, build in builds.items()} for _ in range(runs + 1)][1:]
    row: Row = {"first": first}
    for kind in KINDS:
        row[kind] = statistics.median(each[kind][0] for each in found)
    for kind in KINDS[1:]:
        for at, clock in enumerate(("wall", "cpu")):
            pairs = [each["theirs"][at] / each[kind][at] for each in found]
            row[f"{kind} {clock}"] = statistics.median(pairs)
    return row


def fresh(name: str) -> Row:
    """Return the ratio of what first builds take, each in a copy of this process, which has done
    nothing but import.
    """
    gc.collect()  # what imports left to Python's collector: 160 ms, in whatever allocates next
    pairs = [[_in_copy(name, kind) for kind in KINDS[:2]] for _ in range(FRESH)]
    return {"fresh": statistics.median(theirs / ours for theirs, ours in pairs)}


def _in_copy(name: str, kind: str) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as copy:
        return copy.submit(_first, name, kind).result()


def _first(name: str, kind: str) -> float:
    return seconds(builds_of(name)[kind])[0]


def peak(name: str, kind: str) -> Row:
    """Return how far the memory of this process rises during its first build of a network, above
    that before the call [bytes].
    """
    # A build of another network imports everything. What it has freed goes back to the system, else
    # the build that counts would use it again and seem to need less.
    builder = HybridBuilder()
    builder.from_torchvision("squeezenet1_1", None, patches=PATCHES)
    build = builds_of(name)[kind]
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what there is now
    before = _memory("VmRSS")
    model = build()
    found = _memory("VmHWM") - before
    del model
    return {"bytes": found}


def _memory(entry: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{entry}:")[2].split()[0]) * 1024


# -- one network after another ---------------------------------------------------------------------


@contextmanager
def folders() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder for a network's file, and the environment in which tvc remembers there."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), {**os.environ, "XDG_CACHE_HOME": f"{folder}/remembered"}


def in_process(environment: dict[str, str], *arguments: str) -> Row:
    """Run this script for one network, and return what it prints last."""
    run = [sys.executable, __file__, *arguments]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(name: str, runs: int) -> Row:
    """Return all figures of a network, from processes of their own, the first with an empty
    cache.
    """
    with folders() as (home, environment):

        def ask(what: str, *more: str) -> Row:
            return in_process(environment, name, "--in", str(home), "--do", what, *more)

        row = ask("times", "--runs", str(runs))
        if sys.platform == "linux":
            row |= ask("fresh")
            for kind in KINDS:
                row[f"{kind} peak"] = ask("peak", "--kind", kind)["bytes"] / row["bytes"]
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()
    }


def run(names: Iterable[str], runs: int) -> None:
    """Measure what has no row yet."""
    found = rows.read(RESULTS)
    todo = [name for name in names if name not in found["rows"]]
    packages = ("torch", "torchvision", "tvc-core")
    for number, name in enumerate(todo, 1):
        found["rows"][name] = row = row_of(name, runs)
        found["made with"] = rows.made_with(packages, f"one thread, median of {runs} runs")
        rows.write(RESULTS, found)
        print(f"{number}/{len(todo)} {name}: {' '.join(_cells(row))}", flush=True)


# -- page ------------------------------------------------------------------------------------------

_COLUMNS = {
    "torchvision [s]": "theirs",
    "tvc [s]": "ours",
    "ratio": "ours wall",
    "ratio of processor time": "ours cpu",
    "ratio with two patches": "patched wall",
    "ratio in a fresh process": "fresh",
    "first build [s]": "first",
    "peak / file": "ours peak",
    "with two patches": "patched peak",
    "torchvision's": "theirs peak",
}
_RATIOS = ("ours wall", "ours cpu", "patched wall", "fresh")


def _cells(row: Row) -> list[str]:
    return [f"{row[key]:.3g}" if key in row else "-" for key in _COLUMNS.values()]


def tables(found: Row) -> dict[str, str]:
    """Return the page's tables by the names of their marks."""
    measured: dict[str, Row] = found["rows"]
    words = {key: title for title, key in _COLUMNS.items()}
    summary = []
    for key in _RATIOS if measured else ():
        values = [row[key] for row in measured.values() if key in row]
        summary.append(
            (words[key], f"{statistics.geometric_mean(values):.3g}", f"{min(values):.3g}")
        )
    peaks = [row["ours peak"] for row in measured.values() if "ours peak" in row]
    patched = [row["patched peak"] for row in measured.values() if "patched peak" in row]
    said = "Nothing has been measured yet."
    if measured:
        of = ", ".join(f"{name} {value}" for name, value in found["made with"].items())
        said = f"Made by `make bench-builds`: {len(measured)} networks; {of}."
    if peaks:
        said += (
            f" Peak memory is at most {max(peaks):.3g} times the file, and {max(patched):.3g} "
            "times with two patches."
        )
    if lacking := [name for name, row in sorted(measured.items()) if "fresh" not in row]:
        said += f" Not measured in a fresh process: {', '.join(lacking)}."
    lines = ([name, *_cells(row)] for name, row in sorted(measured.items()))
    return {
        "summary": rows.table(("torchvision's time / tvc's", "geometric mean", "least"), summary),
        "networks": rows.table(("network", *_COLUMNS), lines),
        "made": said,
    }


def main() -> None:
    """Measure, and write the page; or, with --do, print one thing of one network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="only these; by default all")
    parser.add_argument("--again", action="store_true", help="measure their rows anew")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--do", choices=("times", "fresh", "peak"), help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.do:
        (name,) = given.names
        with official_weights(given.home, name, verify=True) as files:
            if given.do == "times":
                found = {**measure(name, given.runs), "bytes": files[name].stat().st_size}
            else:
                found = fresh(name) if given.do == "fresh" else peak(name, given.kind)
        print(json.dumps(found))
        return
    names = given.names or HybridBuilder.list_backbones(origin="torchvision")
    if given.again:
        found = rows.read(RESULTS)
        kept = {name: row for name, row in found["rows"].items() if name not in names}
        rows.write(RESULTS, {**found, "rows": kept})
    if not given.write:
        run(names, given.runs)
    found = tables(rows.read(RESULTS))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rows.filled(text, found, "make bench-builds"), encoding="utf-8")
    print(found["summary"], found["made"], sep="\n\n")


if __name__ == "__main__":
    main()
