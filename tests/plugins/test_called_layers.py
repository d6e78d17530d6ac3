"""A layer of a block is called, wherever a tool waits for that: one that offloads weights brings
them back for the call of the module that holds them, and takes them away after it.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from case_tools import Tiny, open_gates
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel, Patch, Registry, TvcError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
BLOCKS = [offer.qualified for offer in Registry().all("block") if offer.owner != "tvc-core"]
PLACES = [(path, op) for path in ("layer1", "layer2.0") for op in ("wrap", "inject", "replace")]


def tiny(network: Tiny, patches: Any) -> HybridModel:
    return HybridBuilder().from_module(
        network, stem="stem", stages=["layer1", "layer2"], head="fc", patches=patches
    )


def with_block(name: str) -> HybridModel:
    """Return a model with a block at the first place that takes it, gate and weights opened."""
    params = {"num_groups": 4} if name.endswith(":group_norm") else {}
    for place, op in PLACES:
        torch.manual_seed(0)
        patches = {place: {op: {"type": name, "params": params}}}
        try:
            model = tiny(Tiny(), patches)
            break
        except TvcError as error:
            last = error
    else:
        raise last
    for key, tensor in model.named_parameters():
        if key.startswith("patches."):
            nn.init.normal_(tensor, 0.3, 0.2)
    open_gates(model)
    return model.eval()


def offload(model: nn.Module, how: str) -> None:
    """Keep each module's own tensors out of it, but while it is called, as accelerate does."""
    for module in list(model.modules()):
        tensors = {**module._parameters, **module._buffers}
        if isinstance(module, Patch) or all(each is None for each in tensors.values()):
            continue
        kept = [dict(module._parameters), dict(module._buffers)]
        away = [
            {key: None if each is None else each.to("meta") for key, each in given.items()}
            for given in kept
        ]

        def put(given: Any, module: nn.Module = module) -> None:
            module._parameters.update(given[0])
            module._buffers.update(given[1])

        put(away)
        if how == "hooks":
            module.register_forward_pre_hook(lambda *_, p=put, k=kept: p(k))
            module.register_forward_hook(lambda *_, p=put, a=away: p(a))
        else:
            module.forward = functools.partial(called, module.forward, put, kept, away)  # type: ignore[method-assign]


def called(forward: Any, put: Any, kept: Any, away: Any, *args: Any, **kwargs: Any) -> Any:
    put(kept)
    try:
        return forward(*args, **kwargs)
    finally:
        put(away)


@pytest.mark.parametrize("how", ["hooks", "forward"])
@pytest.mark.parametrize("name", BLOCKS)
def test_weights_that_are_there_for_calls_alone_are_enough(name: str, how: str) -> None:
    model = with_block(name)
    right = model(X)
    offload(model, how)
    torch.testing.assert_close(model(X), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["hooks", "forward"])
@pytest.mark.parametrize("groups", [1, 8])
def test_lora_beside_groups(groups: int, how: str) -> None:
    class Grouped(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.layer2[0] = nn.Conv2d(16, 16, 3, 2, 1, groups=groups)

    model = tiny(Grouped(), {"layer2.0": {"inject": "lora"}})
    nn.init.normal_(model.get_submodule("patches.layer2.0.lora.block.up").weight)  # type: ignore[arg-type]
    right = model.eval()(X)
    offload(model, how)
    torch.testing.assert_close(model(X), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["se", "cbam_block", "global_context", "srm", "bam"])
def test_hooks_on_a_gated_block_run_and_change_nothing(name: str) -> None:
    """Its patch runs a method of it otherwise, which computes block and gate at once."""
    model = with_block(name)
    patch = next(each for each in model.modules() if isinstance(each, Patch))
    assert patch.gated
    right = model(X)
    seen: list[Tensor] = []
    handle = patch.block.register_forward_hook(lambda block, args, y: seen.extend((args[0], y)))
    torch.testing.assert_close(model(X), right, rtol=1e-5, atol=1e-6)
    x, y = seen
    torch.testing.assert_close(y, x * patch.block.gate(x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        patch.alpha.zero_()
    closed = model(X)
    handle.remove()
    assert torch.equal(closed, model(X))
    assert len(seen) == 4
