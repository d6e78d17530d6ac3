"""Speed of attention blocks against timm's, as ratios of runs in turn, beside a copy of the map.

Run by `make bench`; prints a table and asserts nothing. Forward and backward of a built hybrid
whose one layer hands its map on, so that what is timed is the block as it is inserted by default:
with its hook and its gate, which is open. timm's block hangs on the same layer by a hook. Beside
each row stands the time of a copy of the map, the smallest number of passes over memory (map read
or written, forward plus backward), and how many copies' time the block takes.

    python tests/bench/blocks.py                    # CPU, float32, 2 threads
    python tests/bench/blocks.py --device cuda --batch 256 --modes eager,compiled

On a GPU in float32 and bfloat16; --graphs times CUDA graphs of the same, without the time that a
processor needs to start the kernels. What is compiled is compared with the floor alone. Where timm
cannot be imported, its columns stay empty.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tvc_attention.fused import compiled as loops

from tvc_core import HybridBuilder

try:
    import timm
    import timm.layers
    from timm.layers.cbam import CbamModule
    from timm.layers.coord_attn import CoordAttn
    from timm.layers.gather_excite import GatherExcite
except ImportError:
    timm = None
try:
    import numba
except ImportError:
    numba = None

SHAPES = {
    (32, 256, 28, 28): "a bottleneck's end in ResNet-50's layer1, 112 pixels",
    (32, 64, 56, 56): "ResNet-18's layer1",
    (32, 512, 14, 14): "ResNet-34's layer4, 448 pixels",
    (32, 960, 7, 7): "MobileNetV3-Large's last stage",
}
THEIRS: dict[str, Callable[[int], nn.Module]] = (
    {}
    if timm is None
    else {
        "se": lambda channels: timm.layers.SEModule(channels),
        "ese": lambda channels: timm.layers.EffectiveSEModule(channels),
        "eca": lambda channels: timm.layers.EcaModule(channels),
        "gather_excite": lambda channels: GatherExcite(channels, use_mlp=False),
        "global_context": lambda channels: timm.layers.GlobalContext(channels),
        "coord_attention": lambda channels: CoordAttn(channels),
        "cbam_block": lambda channels: CbamModule(channels),
    }
)
PARAMS: dict[str, dict[str, Any]] = {"gather_excite": {"use_mlp": False}}
PASSES = {
    "se": 7,
    "ese": 7,
    "eca": 7,
    "gather_excite": 7,
    "global_context": 9,
    "coord_attention": 7,
    "cbam_block": 11,
}
"""Reads and writes of the map that a block cannot do without: forward a read for each statistic
that depends on another, one to multiply, and the result; backward the map and its gradient for each
gradient of a gate that depends on another, and the gradient, what is needed for its value, and the
result.
"""


class Layer(nn.Module):
    """Hand a map on, so that the block after it is all that is timed."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Network(nn.Module):
    """One layer that hands its map on, between a first and a last that the build needs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.layer = Layer()
        self.fc = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


def ours(name: str, channels: int) -> nn.Module:
    """Return the layer of a hybrid, with the block on it and its gate open."""
    block = {"type": name, "params": PARAMS.get(name, {})}
    model = HybridBuilder().from_module(
        Network(channels), stem=["stem"], stages=["layer"], head="fc",
        patches={"layer": {"wrap": block}},
    )  # fmt: skip
    with torch.no_grad():
        model.get_submodule(f"patches.layer.{name}").alpha.fill_(0.5)
    layer = model.get_submodule("layer")
    layer.__dict__["model"] = model  # holds the patches, without being a child
    return layer


def theirs(name: str, channels: int) -> nn.Module | None:
    """Return a layer that calls timm's block by a hook."""
    if name not in THEIRS:
        return None
    layer, block = Layer(), THEIRS[name](channels)
    layer.register_forward_hook(lambda _, args, output: block(output))
    layer.__dict__["model"] = block
    return layer


def runs(layer: nn.Module, x: Tensor, grad: Tensor, compiled: bool) -> Callable[[], None]:
    """Return an action: forward and backward."""
    layer.__dict__["model"].to(device=x.device, dtype=x.dtype).train()
    call = torch.compile(layer, dynamic=False) if compiled else layer

    def run() -> None:
        x.grad = None
        call(x).backward(grad)

    return run


def recorded(action: Callable[[], object]) -> Callable[[], object]:
    """Return an action that replays a CUDA graph of another: what the GPU needs by itself."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def seconds(action: Callable[[], object], cuda: bool) -> float:
    """Return how long an action takes [s]."""
    if not cuda:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    # several in a row, so that starting them is not what is measured
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    for _ in range(10):
        action()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1e4


def median_of(actions: dict[str, Callable[[], object]], num: int, cuda: bool) -> dict[str, float]:
    """Return the median time of each action; they run in turn [s]."""
    for action in actions.values():
        action(), action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(num):
        for name, action in actions.items():
            times[name].append(seconds(action, cuda))
    return {name: statistics.median(each) for name, each in times.items()}


def measure(
    name: str,
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    mode: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Time one block on one map; return a row of the table."""
    torch.manual_seed(0)
    cuda, graphs = options.device == "cuda", options.graphs
    made = torch.randn(shape, device=options.device, dtype=dtype)
    x = made.to(memory_format=memory_format).requires_grad_()
    grad = torch.randn_like(x)
    actions: dict[str, Callable[[], object]] = {"copy": lambda: x.detach().clone()}
    row: dict[str, Any] = {
        "block": name,
        "shape": list(shape),
        "memory": "channels_last" if memory_format is torch.channels_last else "contiguous",
        "dtype": str(dtype).removeprefix("torch."),
        "mode": f"{mode}, graph" if options.graphs else mode,
        "passes": PASSES[name],
    }
    compiled = mode == "compiled"
    torch.compiler.reset()
    actions["ours"] = runs(ours(name, shape[1]), x, grad, compiled)
    if not compiled and (other := theirs(name, shape[1])) is not None:
        actions["timm"] = runs(other, x, grad, compiled)
    if graphs:
        actions = {key: recorded(action) for key, action in actions.items()}
    found = median_of(actions, options.runs, cuda)
    row |= {f"{key}_ms": value * 1e3 for key, value in found.items()}
    row["copies"] = found["ours"] / found["copy"]
    row["times_floor"] = found["ours"] / (found["copy"] * PASSES[name] / 2)
    if "timm" in found:
        row["speed"] = found["timm"] / found["ours"]
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table, and the geometric means of the ratios."""
    head = (
        "block", "shape", "memory", "type", "mode", "copy [ms]", "ours [ms]", "timm [ms]",
        "times as fast", "passes", "times the floor",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        if "error" in row:
            cells = [row["block"], "x".join(map(str, row["shape"])), row["error"]]
        else:
            cells = [
                row["block"],
                "x".join(map(str, row["shape"])),
                row["memory"],
                row["dtype"],
                row["mode"],
                f"{row['copy_ms']:.3g}",
                f"{row['ours_ms']:.3g}",
                f"{row['timm_ms']:.3g}" if "timm_ms" in row else "",
                f"{row['speed']:.2f}" if "speed" in row else "",
                str(row["passes"]),
                f"{row['times_floor']:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for mode in dict.fromkeys(row.get("mode") for row in rows):
        for name in ("all", *dict.fromkeys(row["block"] for row in rows)):
            some = [
                row
                for row in rows
                if "error" not in row and row["mode"] == mode and name in ("all", row["block"])
            ]
            if some:
                floor = geometric([row["times_floor"] for row in some])
                text = f"- {name}, {mode}: {floor:.2f} times the floor"
                if speeds := [row["speed"] for row in some if "speed" in row]:
                    text += (
                        f", {geometric(speeds):.2f} times timm's speed (least {min(speeds):.2f})"
                    )
                lines.append(text)
    return "\n".join(lines)


def geometric(values: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor, on both sides.

    By default it gives the last of the maps back to the system, which hands it out again page by
    page, zeroed. That takes as long as the block and falls on one operation or another, by how maps
    of this size happen to lie: one block took 1.3 times its floor at one shape, 2.8 at the next.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(trim_threshold, 1 << 29)
        libc.mallopt(mmap_threshold, 1 << 25)  # the most that it takes


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure all rows that are asked for; return the versions and them."""
    cuda = options.device == "cuda"
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.without_numba:
        loops.LEAST = 1 << 62
    dtypes = (torch.float32, torch.bfloat16) if cuda else (torch.float32,)
    shapes = list(SHAPES)[: options.shapes]
    # the layer alone is run, not its model
    warnings.filterwarnings("ignore", message=".*runs outside of its model")
    rows, started = [], time.perf_counter()
    for mode in options.modes.split(","):
        for dtype in dtypes:
            for _, *rest in shapes:
                shape = (options.batch, *rest)
                for memory_format in (torch.contiguous_format, torch.channels_last):
                    for name in options.blocks.split(",") if options.blocks else PASSES:
                        if time.perf_counter() - started > options.seconds:
                            continue
                        try:
                            row = measure(name, shape, memory_format, dtype, mode, options)
                        except Exception as error:
                            if not cuda:
                                raise
                            row = {"block": name, "shape": list(shape), "mode": mode}
                            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
                        rows.append(row)
    machine = torch.cuda.get_device_name() if cuda else f"{options.threads} threads"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__ if timm else None,
        "numba": numba.__version__ if numba and not options.without_numba else None,
        "machine": machine,
    }
    return versions, rows


def main(options: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    if options.from_json:
        data = json.loads(Path(options.from_json).read_text("utf-8"))
        versions, rows = data["versions"], data["rows"]
    else:
        versions, rows = measured(options)
    print(json.dumps(versions))
    print(markdown(rows))
    if options.page:
        write(options, f"{said(versions)}\n\n{markdown(rows)}")
    if options.output:
        data = json.dumps({"versions": versions, "rows": rows}, indent=1)
        Path(options.output).write_text(data, encoding="utf-8")


def said(versions: dict[str, Any]) -> str:
    """Return the versions and the machine as a sentence."""
    tools = ", ".join(f"{key} {value}" for key, value in versions.items() if key != "machine")
    return f"On {versions['machine']}; {tools}."


def write(options: argparse.Namespace, text: str) -> None:
    """Put a table between its marks on a page."""
    section = "-".join([options.device, options.modes, *(["graph"] if options.graphs else [])])
    page = Path(options.page)
    marks = re.compile(rf"(<!-- {section} -->\n).*?(<!-- end -->)", re.S)
    before = page.read_text("utf-8")
    changed, count = marks.subn(lambda found: f"{found[1]}{text}\n{found[2]}", before)
    if count != 1:
        raise SystemExit(f"{page} has no place marked {section!r}")
    page.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=15, help="of each, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--modes", default="eager", help="eager, compiled, or both with a comma")
    parser.add_argument("--without-numba", action="store_true", help="run no compiled loops")
    parser.add_argument("--graphs", action="store_true", help="time CUDA graphs")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--blocks", default="", help="names with commas between; all by default")
    parser.add_argument("--seconds", type=float, default=3600, help="start no row after that")
    parser.add_argument("--page", default="", help="a page with marks, to write the table into")
    parser.add_argument("--from-json", default="", help="take rows that --output has written")
    parser.add_argument("--output", default="", help="a file for the rows as JSON")
    main(parser.parse_args())
