"""What each block costs and what it brings: the figures of docs/how-to/choosing-a-block.md. Run by
`make bench-blocks`.

    python tests/bench/choosing.py [BLOCK ...]     measure what is missing, and write the page
    python tests/bench/choosing.py --again BLOCK   measure a block anew
    python tests/bench/choosing.py --write         only write the page's tables

Every finished row is in choosing.json, so a run that was stopped goes on where it was. Names of
blocks come from the registry: a new block is a new row. Asserts nothing.

The task is real weights on real images with a small budget. The first six parts of
EfficientNet-Lite0 are frozen, so what they make of each image is computed once; the rest of the
network, the block and the head are trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "how-to" / "choosing-a-block.md"
CACHE = ROOT / ".venv" / "bench-blocks"

NONE, HEAD_ONLY = "none", "none, head only"
BACKBONES = ("resnet50", "efficientnet_b0", "convnext_tiny")
DATA = {"digits": 10, "elpv": 2}
"""Data sets, and their numbers of classes."""
SEEDS = (0, 1, 2)
LEFT_OUT = ("activation", "identity")
"""Categories without rows."""

COST_IMAGES = (2, 128)
"""Images and side of them where time and memory are measured [images, pixels]."""
SIDE, TRAIN, TEST, EPOCHS, BATCH = 96, 400, 600, 4, 50
RATE_NEW, RATE_OLD = 1e-2, 1e-3
FROZEN = 6
"""The task trains what follows features.5 of EfficientNet-Lite0."""

Row = dict[str, Any]
Patches = dict[str, Any]


# -- places ----------------------------------------------------------------------------------------


def places(name: str, category: str, within: str) -> list[Patches]:
    """Return patches that put a block where it belongs, the best place first.

    Args:
        name: qualified name.
        category: of the block's spec.
        within: "cost", all of a network, or "task", the trained part of EfficientNet-Lite0.
    """
    task, after = within == "task", {"wrap": name}
    branch, beside = ({"inject": {"type": name, "position": p}} for p in ("branch", "parallel"))
    inside = "features.[678].**" if task else "**"
    if name.endswith(":gem"):
        return [{"avgpool": {"replace": name}}]
    if category == "pooling":
        return [{f"{inside}.type:MaxPool2d": {"replace": name}}]
    if category == "normalization":
        params = {"num_groups": 8} if name.endswith(":group_norm") else {}
        patch = {"replace": {"type": name, "params": params}}
        return [{f"{inside}.type:{kind}": patch} for kind in ("BatchNorm2d", "LayerNorm2d")]
    if category == "adapter":
        return [{f"{inside}.type:Conv2d": patch} for patch in (beside, after)]
    if category in ("regularization", "scale"):
        kinds = ("Bottleneck", "MBConv", "CNBlock")
        blocks = ["features.6.[123]"] if task else [f"stage:*.type:{kind}" for kind in kinds]
        return [{block: branch} for block in blocks]
    return [{"features.5": after, "features.6": after}] if task else [{"stage:*": after}]


def build(backbone: str, weights: str | None, options: list[Patches], **more: Any) -> Any:
    """Return the hybrid of the first patches that fit, and those patches.

    Raises:
        TvcError: none of them fits; the error is the first one's.
    """
    from tvc_core import HybridBuilder, TvcError

    first: Exception | None = None
    for patches in options:
        try:
            return HybridBuilder().from_backbone(
                backbone, weights, patches=patches, **more
            ), patches
        except TvcError as error:
            first = first or error
    assert first is not None
    raise first


def blocks() -> dict[str, str]:
    """Return the first-party blocks that get rows, and their categories."""
    from tvc_core import BlockSpec, Registry

    found = {offer.qualified: offer.spec.category for offer in Registry().all(BlockSpec)}
    return {
        name: category
        for name, category in sorted(found.items(), key=lambda item: (item[1], item[0]))
        if name.startswith("tvc-") and category not in LEFT_OUT
    }


def is_gate(key: str, parameter: Any) -> bool:
    """Say whether a parameter is a patch's gate; gct has an `alpha` of its own, one a channel."""
    return key.endswith(".alpha") and parameter.numel() == 1


# -- cost ------------------------------------------------------------------------------------------


def cost(name: str, category: str, backbone: str) -> Row:
    """Return what a block adds to a network in parameters, multiply-adds, time and memory."""
    import torch
    from memory import kept_bytes
    from torch.utils.flop_counter import FlopCounterMode

    from tvc_core import HybridBuilder

    torch.manual_seed(0)
    plain = HybridBuilder().from_backbone(backbone, None)
    patched, patches = build(backbone, None, places(name, category, "cost"))
    for key, gate in patched.named_parameters():
        if is_gate(key, gate):
            gate.data.fill_(0.5)
    images, side = COST_IMAGES
    large, small = torch.randn(1, 3, 224, 224), torch.randn(images, 3, side, side)

    def count(model: Any) -> tuple[int, float]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(large)
        return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2

    def forward(model: Any) -> Callable[[], object]:
        model.eval()
        return lambda: torch.no_grad()(model)(small)

    def step(model: Any) -> Callable[[], object]:
        model.train()
        return lambda: model(small).sum().backward()

    (params, adds), (plain_params, plain_adds) = count(patched), count(plain)
    times = [ratio(make(patched), make(plain), runs) for make, runs in ((forward, 9), (step, 4))]
    kept = [kept_bytes(model.train(), small) for model in (patched, plain)]
    return {
        "patches": json.dumps(patches),
        "params": params - plain_params,
        "plain_params": plain_params,
        "adds": adds - plain_adds,
        "plain_adds": plain_adds,
        "forward": round(times[0], 3),
        "step": round(times[1], 3),
        "kept": round(kept[0] / kept[1], 3),
    }


def ratio(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> float:
    """Return the median ratio of two actions' times, run in turn after one uncounted run."""
    ratios = []
    for number in range(runs + 1):
        times = []
        for action in (ours, theirs):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        ratios += [times[0] / times[1]] if number else []
    return statistics.median(ratios)


# -- task ------------------------------------------------------------------------------------------


def load_images(data: str) -> tuple[Any, Any]:
    """Return a data set's grey images [N, 1, SIDE, SIDE], from 0 to 1, and its labels."""
    import torch

    if data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(digits.target)
    else:
        from elpv_dataset.utils import load_dataset

        grey, defect, _ = load_dataset()
        images = torch.tensor(grey, dtype=torch.float32)[:, None] / 255
        labels = torch.tensor(defect > 0.5).long()
    scale = torch.nn.functional.interpolate
    return scale(images, size=(SIDE, SIDE), mode="bilinear", antialias=True), labels


def features(data: str) -> tuple[Any, Any]:
    """Return what the frozen part makes of each image [N, 112, 6, 6], and the labels."""
    import torch

    from tvc_core import HybridBuilder

    file = CACHE / f"{data}-{SIDE}.pt"
    if not file.exists():
        images, labels = load_images(data)
        model = HybridBuilder().from_backbone("efficientnet_lite0").eval()
        with torch.no_grad():
            maps = [
                model.features[:FROZEN](((part - 0.5) / 0.25).expand(-1, 3, -1, -1))
                for part in images.split(64)
            ]
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save((torch.cat(maps), labels), file)
    return torch.load(file, weights_only=True)


def task(name: str, category: str, data: str, seed: int, maps: Any = None) -> Row:
    """Return the accuracy on images held out, after training with the budget.

    Args:
        name: the block; NONE and HEAD_ONLY are networks without.
        category: of its spec.
        data: name of the data set.
        seed: of split, start and order.
        maps: what `features` returns, by default that of `data`.
    """
    import torch
    from torch import nn

    x, y = features(data) if maps is None else maps
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN : TRAIN + TEST]
    options = [{}] if name in (NONE, HEAD_ONLY) else places(name, category, "task")
    stages: list[int] = [-2, -1]
    if name == HEAD_ONLY or category == "adapter":  # which leave the backbone frozen
        stages = []
    torch.manual_seed(seed)
    model, patches = build(
        "efficientnet_lite0", "DEFAULT", options,
        num_classes=DATA[data], freeze_backbone=True, unfreeze_stages=stages,
    )  # fmt: skip
    for index in range(FROZEN):
        model.features[index] = nn.Identity()  # its maps are the input
    torch.manual_seed(seed)
    head = model.get_classifier()
    head.reset_parameters()
    new = {id(p) for p in head.parameters()}
    new |= {id(p) for key, p in model.named_parameters() if key.startswith("patches.")}
    groups: list[list[Any]] = [[], []]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in new].append(parameter)
    rates = [rate for rate, group in zip((RATE_OLD, RATE_NEW), groups, strict=True) if group]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group])
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps)
    start, generator = time.process_time(), torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = [int((model(x[part]).argmax(1) == y[part]).sum()) for part in test.split(200)]
    gates = [float(p) for key, p in model.named_parameters() if is_gate(key, p)]
    return {
        "patches": json.dumps(patches),
        "accuracy": round(100 * sum(right) / len(test), 2),
        "seconds": round(time.process_time() - start, 1),
        "trained": sum(p.numel() for group in groups for p in group),
        "gates": [round(gate, 3) for gate in gates],
    }


# -- running ---------------------------------------------------------------------------------------


def jobs(wanted: Iterable[str] = ()) -> Iterator[tuple[str, ...]]:
    """Yield what a row is about: ("cost", block, category, backbone), or ("task", block, category,
    data, seed).
    """
    names = blocks()
    chosen = [n for n in names if not wanted or n in wanted or n.partition(":")[2] in wanted]
    for seed, data in itertools.product(SEEDS, DATA):
        for name in (NONE, HEAD_ONLY, *chosen):
            yield "task", name, names.get(name, ""), data, str(seed)
    for name, backbone in itertools.product(chosen, BACKBONES):
        yield "cost", name, names[name], backbone


def measure(job: tuple[str, ...]) -> tuple[tuple[str, ...], Row]:
    """Return the row of a job; one that fails says why."""
    import torch

    torch.set_num_threads(1)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind, name, category, on, *seed = job
            row = (
                cost(name, category, on)
                if kind == "cost"
                else task(name, category, on, int(seed[0]))
            )
        except Exception as error:  # the page says so, and the other rows go on
            row = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
    return job, {**row, "cpu": round(time.process_time() - start, 1)}


def run(wanted: list[str], workers: int) -> None:
    """Measure what has no row yet, one process for each worker."""
    found = read()
    todo = [job for job in jobs(wanted) if key_of(job) not in found["rows"]]
    if not todo:
        return
    for data in DATA:
        features(data)
    found["made with"] = made_with(workers)
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, (job, row) in enumerate(pool.imap_unordered(measure, todo), 1):
            found["rows"][key_of(job)] = row
            write(found)
            left = (time.monotonic() - start) / number * (len(todo) - number)
            said = row.get("error") or row.get("accuracy") or row["forward"]
            print(
                f"{number}/{len(todo)} {key_of(job)}: {said}; {left / 60:.0f} min left", flush=True
            )


def key_of(job: tuple[str, ...]) -> str:
    """Return a job's key: kind, block, and what it was measured on."""
    kind, name, _, *on = job
    return " | ".join((kind, name, *on))


def made_with(workers: int) -> dict[str, Any]:
    """Return versions and machine."""
    packages = ("torch", "torchvision", "scikit-learn", "elpv-dataset", "tvc-core")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {workers} processes of 1 thread",
    }


def read() -> dict[str, Any]:
    """Return what has been measured."""
    if not RESULTS.exists():
        return {"made with": {}, "rows": {}}
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def write(found: dict[str, Any]) -> None:
    """Write what has been measured; a kill leaves the old file or the new one."""
    new = RESULTS.with_suffix(".tmp")
    rows = dict(sorted(found["rows"].items()))
    lines = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    head = json.dumps(found["made with"])
    new.write_text(
        f'{{\n "made with": {head},\n "rows": {{\n  {lines}\n }}\n}}\n', encoding="utf-8"
    )
    new.replace(RESULTS)


# -- page ------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return the page's tables by the names of their markers."""
    rows: dict[str, Row] = found["rows"]
    return {"cost": _cost_table(rows), "task": _task_table(rows), "made": _made(found)}


def _cost_table(rows: dict[str, Row]) -> str:
    names = dict.fromkeys(key.split(" | ")[1] for key in rows if key.startswith("cost"))
    lines = []
    for name in names:
        for backbone in BACKBONES:
            row = rows.get(f"cost | {name} | {backbone}")
            if row is None:
                continue
            if "error" in row:
                cells = ["-", "-", "-", "-", "-", _why(row["error"])]
            else:
                cells = [
                    f"{row['params'] / 1e3:+,.1f}",
                    f"{100 * row['adds'] / row['plain_adds']:+.1f}",
                    f"{row['forward']:.2f}",
                    f"{row['step']:.2f}",
                    f"{row['kept']:.2f}",
                    ", ".join(f"`{target}`" for target in json.loads(row["patches"])),
                ]
            lines.append((f"`{name.partition(':')[2]}`", backbone, *cells))
    return _table(
        (
            *("block", "network", "parameters [10^3]", "multiply-adds [%]", "forward [times]"),
            *("training step [times]", "kept for backward [times]", "at"),
        ),
        lines,
    )


def _why(error: str) -> str:
    return "there is nothing to replace" if "matches no" in error else error.replace("|", "/")[:80]


def _task_table(rows: dict[str, Row]) -> str:
    names = list(dict.fromkeys(key.split(" | ")[1] for key in rows if key.startswith("task")))
    names.sort(key=lambda name: (name not in (NONE, HEAD_ONLY), name))
    lines = []
    for name in names:
        cells, trained = [], "-"
        for data in DATA:
            own = [rows.get(f"task | {name} | {data} | {seed}", {}) for seed in SEEDS]
            plain = [rows.get(f"task | {NONE} | {data} | {seed}", {}) for seed in SEEDS]
            values = [row["accuracy"] for row in own if "accuracy" in row]
            if len(values) < len(SEEDS):
                cells += ["-", "-"]
                continue
            trained = f"{own[0]['trained'] / 1e3:,.0f}"
            base = [row.get("accuracy", float("nan")) for row in plain]
            apart = [mine - other for mine, other in zip(values, base, strict=True)]
            cells += [
                f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})",
                ""
                if name == NONE
                else f"{statistics.mean(apart):+.1f} ({min(apart):+.1f} to {max(apart):+.1f})",
            ]
        label = name if name in (NONE, HEAD_ONLY) else f"`{name.partition(':')[2]}`"
        lines.append((label, *cells, trained))
    head: list[str] = ["block"]
    for data in DATA:
        head += [f"{data} [%]", "against none"]
    return _table((*head, "trained [10^3]"), lines)


def _made(found: dict[str, Any]) -> str:
    if not found["rows"]:
        return "Nothing has been measured yet."
    of = ", ".join(f"{name} {value}" for name, value in found["made with"].items())
    minutes = sum(row["cpu"] for row in found["rows"].values()) / 60
    count = len(found["rows"])
    return (
        f"Made by `make bench-blocks`: {count} rows, {minutes:.0f} minutes of processor time; {of}."
    )


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(head)]
    rows += [["---"] * len(rows[0]), *(list(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(text: str, found: dict[str, Any]) -> str:
    """Return the page with its tables written from what has been measured."""
    for name, table in tables(found).items():
        marked = rf"(<!-- {name}: written by make bench-blocks -->\n).*?(<!-- end -->)"
        text, count = re.subn(marked, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.S)
        assert count == 1, f"{PAGE.name} has {count} places for the table {name!r}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("blocks", nargs="*", help="only these; by default all")
    parser.add_argument("--again", action="store_true", help="measure their rows anew")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    given = parser.parse_args()
    if given.again:
        found = read()
        stale = {key_of(job) for job in jobs(given.blocks)}
        write({**found, "rows": {k: v for k, v in found["rows"].items() if k not in stale}})
    if not given.write:
        run(given.blocks, given.workers)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
