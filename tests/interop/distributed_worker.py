"""What one process of a group does; `test_distributed.py` starts it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from case_tools import EVERY_POSITION, difference, gates, ready
from torch import Tensor, nn

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
Y = torch.arange(4)


def step(net: Any, parameters: Any, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(parameters, 0.05)
    net.train()
    loss = nn.functional.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def ddp(rank: int, world: int) -> None:
    from torch.nn.parallel import DistributedDataParallel

    model = ready("resnet18", EVERY_POSITION)
    right = model(X).detach()
    model.freeze_backbone(unfreeze_stages=[-1])
    before = {n: p.detach().clone() for n, p in gates(model).items()}
    wrapped = DistributedDataParallel(model)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    assert difference(wrapped.eval()(X), right) < 1e-6
    step(wrapped, [p for p in model.parameters() if p.requires_grad], X[share], Y[share])
    assert all(not torch.equal(p, before[n]) for n, p in gates(model).items())
    for parameter in model.parameters():  # the same in every process
        mine = parameter.detach().clone()
        dist.broadcast(mine, 0)
        assert torch.equal(mine, parameter)
    try:
        model.unfreeze_all()
    except Exception as error:
        assert type(error).__name__ == "FreezeError", error
    else:
        raise AssertionError("thawed under DistributedDataParallel")


def fsdp(rank: int, world: int) -> None:
    from torch.distributed.fsdp import fully_shard

    model = ready("resnet18", EVERY_POSITION)
    right, maps = model(X).detach(), [m.detach() for m in model.get_stage_outputs(X)]
    before = {n: float(p.detach()) for n, p in gates(model).items()}
    try:
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            fully_shard(stage)
        fully_shard(model)
        found = model.eval()(X)
    except Exception as error:
        name = type(error).__module__
        assert name.startswith("tvc_core") and "FSDP" in str(error), repr(error)
        return
    assert difference(found, right) < 1e-5
    assert difference(model.get_stage_outputs(X), maps) < 1e-5
    assert difference(model(X), right) < 1e-5
    model.reshard()  # after a forward without a backward pass, as of any network
    step(model, model.parameters(), X, Y)
    after = {n: float(p.full_tensor()) for n, p in gates(model).items()}
    still = [n for n in before if after[n] == before[n]]
    assert still == [], still
    names = set(model.state_dict())
    assert "patches.layer3.conv_bn_act.alpha" in names


def main() -> None:
    what, rank, world, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        {"ddp": ddp, "fsdp": fsdp}[what](rank, world)
    finally:
        dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main()
