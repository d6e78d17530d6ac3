"""DistributedDataParallel and FSDP2 over gloo, on CPUs: they work, or are refused clearly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("what", ["ddp", "fsdp"])
def test_processes(what: str, world: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), what, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        for worker in workers:
            out, error = worker.communicate(timeout=240)
            assert worker.returncode == 0 and "fine" in out, error[-3000:]
    finally:
        for worker in workers:
            worker.kill()
