"""Compare the forward pass of a hybrid between two states of the code, in a process each.

    python tests/bench/versus.py NEW_PATH OLD_PATH [--runs 30]

Each path is what PYTHONPATH is to be there (folders, separated as the system does it). The two
processes take turns, so that both see the same machine. Prints the median ratio new / old with 16
patches, that of the unpatched hybrid to torchvision's network in each state, and torchvision's
network against itself beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

NETWORKS = ("plain", "again", "hybrid", "patched")


def serve(batch: int, size: int) -> None:
    """Answer each line, a network's name, with the time of one forward pass [s]."""
    import torch
    import torchvision

    from tvc_core import HybridBuilder

    torch.set_num_threads(1)
    torch.manual_seed(0)
    patches: dict[str, Any] = {
        "layer*.*": {"wrap": {"type": "se", "position": "branch"}},
        "layer*.*.conv1": {"inject": {"type": "eca", "position": "after"}},
    }
    build = HybridBuilder().from_torchvision
    networks = {
        "plain": torchvision.models.resnet18(),
        "again": torchvision.models.resnet18(),
        "hybrid": build("resnet18", None),
        "patched": build("resnet18", None, patches=patches),
    }
    assert len(networks["patched"].patch_records) == 16
    x = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        for network in networks.values():
            network.eval()(x)
        print("ready", flush=True)
        for line in sys.stdin:
            network = networks[line.strip()]
            start = time.perf_counter()
            network(x)
            print(time.perf_counter() - start, flush=True)


class Server:
    """A process that runs networks of one state of the code."""

    def __init__(self, path: str, batch: int, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve", f"--batch={batch}", f"--size={size}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, network: str) -> float:
        """Return how long one forward pass takes [s]."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{network}\n")
        self.process.stdin.flush()
        return float(self._line())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", help="PYTHONPATH of the new and of the old state")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.batch, given.size)
        return
    new, old = (Server(path, given.batch, given.size) for path in given.paths)
    times: dict[tuple[str, str], list[float]] = {}
    for run in range(given.runs + 3):
        for network in NETWORKS:
            both = (("new", new), ("old", old))
            for name, server in both if run % 2 else both[::-1]:
                seconds = server.seconds(network)
                if run >= 3:  # the first ones warm up
                    times.setdefault((name, network), []).append(seconds)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> str:
        pairs = zip(times[one], times[other], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.3f}"

    print("16 patches, new / old:         ", ratio(("new", "patched"), ("old", "patched")))
    print("torchvision's, new / old:      ", ratio(("new", "plain"), ("old", "plain")))
    for name in ("new", "old"):
        print(f"{name}: unpatched / torchvision:  ", ratio((name, "hybrid"), (name, "plain")))
        print(f"{name}: torchvision / itself:     ", ratio((name, "again"), (name, "plain")))
        print(f"{name}: 16 patches / torchvision: ", ratio((name, "patched"), (name, "plain")))


if __name__ == "__main__":
    main()
