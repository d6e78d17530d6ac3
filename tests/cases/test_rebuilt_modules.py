"""A patch belongs to a path: where another tool puts a new module there, the patch hangs on it.

Gates are open and statistics calibrated, so that a patch that is lost, or runs twice or elsewhere,
changes what the model computes.
"""

from __future__ import annotations

import copy
import pickle
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import (
    EVERY_POSITION,
    Tiny,
    calibrate,
    difference,
    gates,
    new_tensors,
    open_gates,
    ready,
    steps,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tvc_core
from tvc_core import HybridBuilder, HybridModel, PatchError, TvcError, WeightsError
from tvc_core.surgery import patches as hooks

X = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(5))

Tool = Callable[[HybridModel], Any]


# -- tools -----------------------------------------------------------------------------------------


def sync_torch(model: HybridModel) -> Any:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def sync_timm(model: HybridModel) -> Any:
    return pytest.importorskip("timm").layers.convert_sync_batchnorm(model)


def exchange(model: nn.Module, wanted: type[nn.Module], make: Callable[[Any], nn.Module]) -> Any:
    """What a loop of somebody's does."""
    for path, module in list(model.named_modules()):
        if isinstance(module, wanted):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, make(module))
    return model


def group_norm(module: Any) -> nn.Module:
    new = nn.GroupNorm(min(8, module.num_features), module.num_features)
    new.load_state_dict({"weight": module.weight.data, "bias": module.bias.data})
    return new


def same_batch_norm(module: Any) -> nn.Module:
    new = nn.BatchNorm2d(module.num_features)
    new.load_state_dict(module.state_dict())
    return new


def same_conv(module: Any) -> nn.Module:
    new = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.bias is not None,
    )
    new.load_state_dict(module.state_dict())
    return new


class LowRank(nn.Module):
    """LoRA as people write it by hand; `base` stays inside."""

    def __init__(self, base: nn.Conv2d, rank: int = 2, scale: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(
            base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False
        )
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            self.up.weight.copy_(scale * torch.randn(self.up.weight.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged_weight(self) -> Tensor:
        down, up = self.down.weight, self.up.weight[:, :, 0, 0]
        return self.base.weight + torch.einsum("or,rihw->oihw", up, down)


def low_rank(model: HybridModel) -> Any:
    """Wrap the convolutions of the backbone."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and not path.startswith(("patches", "tvc_patches")):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LowRank(module))
    return model


def hooks_cleared(model: HybridModel) -> Any:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model


def weight_norm(model: HybridModel) -> Any:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            parametrizations.weight_norm(module)
    return model


def new_convs(model: HybridModel) -> Any:
    return exchange(model, nn.Conv2d, same_conv)


def new_norms(model: HybridModel) -> Any:
    return exchange(model, nn.BatchNorm2d, same_batch_norm)


def new_blocks(model: HybridModel) -> Any:
    """Copies of whole residual blocks, without the hooks of what was copied."""
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for index, block in enumerate(stage):
            fresh = torchvision.models.resnet.BasicBlock(
                block.conv1.in_channels,
                block.conv1.out_channels,
                block.stride,
                None if block.downsample is None else copy.deepcopy(block.downsample),
            )
            fresh.load_state_dict(block.state_dict())
            stage[index] = fresh
    return model


def pickled(model: HybridModel) -> Any:
    return pickle.loads(pickle.dumps(model))


def with_quantizers(model: HybridModel) -> Any:
    """Prepare training that knows of quantization, with its rounding off, so that the function is
    kept.
    """
    from torch.ao import quantization

    model.train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    prepared = quantization.prepare_qat(model)
    prepared.apply(quantization.disable_fake_quant)
    prepared.apply(quantization.disable_observer)
    return prepared


KEEPING: list[Tool] = [
    sync_torch,
    sync_timm,
    new_norms,
    new_convs,
    new_blocks,
    low_rank,
    hooks_cleared,
    weight_norm,
    with_quantizers,
    copy.deepcopy,
    pickled,
]

# torch.ao is deprecated in favor of torchao
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quant:UserWarning"
)


def saved_right_or_not_at_all(model: HybridModel, path: Path) -> str:
    """Save and load; return the error, which says what stands in the way, or nothing."""
    model.eval()
    try:
        model.save(path)
    except WeightsError as error:
        assert not path.exists()
        return str(error)
    with torch.no_grad():
        assert difference(tvc_core.load(path)(X), model(X)) < 1e-6
    return ""


def without_hooks(model: HybridModel) -> Any:
    """Return torchvision's own network with the same weights and statistics."""
    plain = torchvision.models.resnet18(num_classes=10)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "patches." not in k})
    return plain.eval()


# -- every tool, patches in every position ---------------------------------------------------------


@pytest.fixture(scope="module")
def patched() -> HybridModel:
    return ready("resnet18", EVERY_POSITION)


def test_every_patch_matters(patched: HybridModel) -> None:
    """Otherwise nothing below would show that one is lost."""
    with torch.no_grad():
        right = patched(X)
        for record in patched.patch_records:
            for path in record.paths:
                gate = patched.get_submodule(path).alpha
                before = gate.clone()
                gate.zero_()
                assert difference(patched(X), right) > 1e-4, path
                gate.copy_(before)


@pytest.mark.parametrize("tool", KEEPING, ids=lambda tool: tool.__name__)
def test_a_tool_keeps_the_function_and_the_patches_learn(
    tool: Tool, patched: HybridModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        right = patched(X)
        plain = without_hooks(patched)
        kept = difference(tool(copy.deepcopy(plain)).eval()(X), plain(X))
        changed = tool(copy.deepcopy(patched)).eval()
        assert difference(changed(X), right) <= max(1e-6, 4 * kept)
        assert difference(changed(X), right) <= max(1e-6, 4 * kept)  # once
        assert difference(changed.get_stage_outputs(X), patched.get_stage_outputs(X)) < 1e-5
    saved_right_or_not_at_all(changed, tmp_path / "before.safetensors")
    before = {name: p.detach().clone() for name, p in new_tensors(changed).items()}
    still = set(gates(changed))
    assert len(still) == sum(len(record.paths) for record in patched.patch_records)
    losses = steps(changed)
    assert all(torch.tensor(losses).isfinite())
    moved = {n for n, p in new_tensors(changed).items() if not torch.equal(p, before[n])}
    assert still <= moved
    # every block learns, and not only its gate
    homes = {home for record in patched.patch_records for home in record.paths}
    assert {h for h in homes if any(n.startswith(f"{h}.block") for n in moved)} == homes
    saved_right_or_not_at_all(changed, tmp_path / "after.safetensors")


@pytest.mark.parametrize("tool", [sync_torch, sync_timm, new_norms, new_convs, new_blocks])
def test_what_computes_the_same_is_saved(tool: Tool, patched: HybridModel, tmp_path: Path) -> None:
    """The recipe makes a network with the same keys that computes the same, so there is no reason
    to refuse.
    """
    changed = tool(copy.deepcopy(patched))
    assert saved_right_or_not_at_all(changed, tmp_path / "m.safetensors") == ""


@pytest.mark.parametrize("block", ["bam", "non_local", "srm", "triplet_attention"])
def test_normalizations_of_blocks_may_be_synchronized(block: str, tmp_path: Path) -> None:
    """They are of a class of their own, which computes the same in eval mode."""
    model = ready("resnet18", {"layer3": {"wrap": block}})
    assert saved_right_or_not_at_all(sync_torch(model), tmp_path / "m.safetensors") == ""


@pytest.mark.parametrize("tool", [low_rank, weight_norm, with_quantizers])
def test_what_a_recipe_cannot_make_is_named(
    tool: Tool, patched: HybridModel, tmp_path: Path
) -> None:
    changed = tool(copy.deepcopy(patched))
    said = saved_right_or_not_at_all(changed, tmp_path / "m.safetensors")
    assert re.search(r"conv1|LowRank|layer\d|Parametrized|fake_quant|parametriz", said), said


@pytest.mark.parametrize("call", ["train", "eval", "to", "save"])
def test_each_of_these_calls_hangs_the_patches_back(
    call: str, patched: HybridModel, tmp_path: Path
) -> None:
    changed = sync_torch(copy.deepcopy(patched))
    calls: dict[str, Callable[[], Any]] = {
        "train": changed.train,
        "eval": changed.eval,
        "to": lambda: changed.to(torch.float32),
        "save": lambda: changed.save(tmp_path / "m.safetensors"),
    }
    calls[call]()
    for module in changed.modules():
        module.training = False  # by hand, so that nothing else does it
    with torch.no_grad():
        assert difference(changed(X), patched(X)) < 1e-6


def test_explain_says_that_a_patch_hangs_on_a_new_module(patched: HybridModel) -> None:
    changed = sync_torch(copy.deepcopy(patched)).eval()
    text = changed.explain()
    assert "gone" not in text
    assert text != patched.explain()
    assert re.search(r"(?i)exchanged|SyncBatchNorm|new module|moved", text)


def test_a_loop_from_batch_to_group_normalization(tmp_path: Path) -> None:
    """Right is what a network computes in which they were exchanged before it was patched."""
    torch.manual_seed(0)
    model = ready("resnet18", EVERY_POSITION)
    changed = exchange(copy.deepcopy(model), nn.BatchNorm2d, group_norm).eval()
    plain = exchange(torchvision.models.resnet18(num_classes=10), nn.BatchNorm2d, group_norm)
    reference = HybridBuilder().from_module(
        plain,
        stem=("conv1", "bn1"),
        stages=["layer1", "layer2", "layer3", "layer4"],
        head="fc",
        patches=EVERY_POSITION,
    )
    exchange(reference, nn.BatchNorm2d, group_norm)  # those of the blocks
    reference.load_state_dict(changed.state_dict())
    with torch.no_grad():
        assert difference(changed(X), reference.eval()(X)) < 1e-6
    before = {name: p.detach().clone() for name, p in gates(changed).items()}
    steps(changed)
    assert all(not torch.equal(p, before[name]) for name, p in gates(changed).items())
    said = saved_right_or_not_at_all(changed, tmp_path / "m.safetensors")
    assert "GroupNorm" in said or "bn1" in said


# -- each position at each place -------------------------------------------------------------------

PLACES = {
    "layer2": ("after", "before"),
    "layer2.0": ("after", "before", "branch"),
    "layer2.0.conv1": ("after", "before"),
    "layer2.1.bn2": ("after", "before", "parallel"),
    "layer2.1.conv1": ("after", "before", "parallel"),
    "layer2.1": ("after", "before", "parallel", "branch"),
    "layer2.0.downsample": ("after", "before"),
    "layer2.0.downsample.1": ("after", "parallel"),
    "bn1": ("after", "before", "parallel"),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_position_at_each_place_survives(place: str) -> None:
    steps = [{"inject": {"type": "se", "position": position}} for position in PLACES[place]]
    model = ready("resnet18", {place: steps})
    assert len(gates(model)) == len(steps)
    with torch.no_grad():
        right = model(X)
        for gate in gates(model).values():  # one patch that is lost would be seen
            gate.fill_(0)
            assert difference(model(X), right) > 1e-4
            gate.fill_(0.7)
        for tool in (sync_torch, new_norms, new_convs, new_blocks, hooks_cleared):
            changed = tool(copy.deepcopy(model)).eval()
            assert difference(changed(X), right) < 1e-6, tool.__name__


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_a_wrapper_at_a_patched_path_comes_before_the_patch(scale: float) -> None:
    """Right is the convolution with the low-rank weight added, which needs no new module."""
    patches = {
        "layer1.0.conv2": {"wrap": "se"},
        "layer1.1.conv1": {"inject": {"type": "se", "position": "before"}},
        "layer2.1.conv2": {"inject": {"type": "se", "position": "parallel"}},
    }
    model = ready("resnet18", patches)
    wrapped, merged, reference = (copy.deepcopy(model) for _ in range(3))
    for path in ("layer1.0.conv2", "layer1.1.conv1", "layer2.1.conv2", "layer3.0.conv1"):
        parent, _, name = path.rpartition(".")
        torch.manual_seed(3)
        wrapper = LowRank(wrapped.get_submodule(path), scale=scale)
        setattr(wrapped.get_submodule(parent), name, wrapper)
        weight = wrapper.merged_weight().detach()
        reference.get_submodule(path).weight.data.copy_(weight)
        fresh = same_conv(merged.get_submodule(path))
        fresh.weight.data.copy_(weight)
        setattr(merged.get_submodule(parent), name, fresh)
    with torch.no_grad():
        right = reference.eval()(X)
        assert difference(wrapped.eval()(X), right) < 1e-5
        assert difference(merged.eval()(X), right) < 1e-6
        if scale:
            assert difference(model(X), right) > 1e-3


def test_wrapped_and_unwrapped_again() -> None:
    """The patch comes back to the module that it hung on first, once."""
    model = ready("resnet18", {"layer1.0.conv2": {"wrap": "se"}, "layer2.0.bn2": {"wrap": "eca"}})
    right = model(X).detach()
    base = model.layer1[0].conv2
    model.layer1[0].conv2 = LowRank(base)
    model.eval()
    assert difference(model(X), right) < 1e-6
    model.layer1[0].conv2 = base
    model.eval()
    assert difference(model(X), right) < 1e-6


def test_a_module_that_is_used_at_two_patched_paths() -> None:
    """Somebody ties two layers; each path keeps its own patch, or the model says that it cannot."""
    model = ready("resnet18", {"layer1.0.bn1": {"wrap": "se"}, "layer1.1.bn1": {"wrap": "eca"}})
    reference = copy.deepcopy(model)
    reference.layer1[1].bn1.load_state_dict(reference.layer1[0].bn1.state_dict())
    model.layer1[1].bn1 = model.layer1[0].bn1
    try:
        model.eval()
        found = model(X)
    except TvcError as error:
        assert "layer1.1.bn1" in str(error)
        return
    assert difference(found, reference(X)) < 1e-6


# -- fusing ----------------------------------------------------------------------------------------

FUSED = [
    [f"layer{i}.{j}.{a}" for a in pair]
    for i in range(1, 5)
    for j in range(2)
    for pair in (("conv1", "bn1"), ("conv2", "bn2"))
] + [["conv1", "bn1"]]


def fuse_eager(model: Any) -> Any:
    from torch.ao.quantization import fuse_modules

    return fuse_modules(model.eval(), FUSED)


def fuse_for_training(model: Any) -> Any:
    from torch.ao.quantization import fuse_modules_qat

    return fuse_modules_qat(model.train(), FUSED)


def fuse_traced(model: Any) -> Any:
    from torch.fx.experimental.optimization import fuse

    return fuse(model.eval())


OUTSIDE_OF_PAIRS = {
    "layer1.*": {"wrap": {"type": "se", "position": "branch"}},
    "layer2.1": {"inject": {"type": "se", "position": "before"}},
    "layer2.0": {"inject": {"type": "cbam_block", "position": "after"}},
    "layer3": EVERY_POSITION["layer3"],
    "layer4.0.bn1": {"wrap": "eca"},
    "layer4.1.conv1": {"inject": {"type": "se", "position": "before"}},
    "layer4.*": {"wrap": {"type": "channel_attention", "position": "branch"}},
}
BETWEEN = ("layer2.1.conv1", "layer3.0.conv2")


@pytest.mark.parametrize("tool", [fuse_eager, fuse_for_training, fuse_traced])
def test_fusing_keeps_patches_that_are_not_between(tool: Tool, tmp_path: Path) -> None:
    model = ready("resnet18", OUTSIDE_OF_PAIRS)
    with torch.no_grad():
        right, plain = model(X), without_hooks(model)
        kept = difference(tool(copy.deepcopy(plain)).eval()(X), plain(X))
        try:
            fused = tool(copy.deepcopy(model)).eval()
            found = fused(X)
        except TvcError as error:
            assert tool is fuse_traced, error  # torch.fx does not see the hooks of a leaf
            assert re.search(r"layer1|layer4", str(error))
            return
        assert difference(found, right) <= max(1e-6, 4 * kept)
    if tool is fuse_traced:
        return  # a GraphModule: no hybrid any more
    before = {name: p.detach().clone() for name, p in gates(fused).items()}
    steps(fused, rate=0.01)
    assert all(not torch.equal(p, before[name]) for name, p in gates(fused).items())
    assert saved_right_or_not_at_all(fused, tmp_path / "m.safetensors") != ""


@pytest.mark.parametrize("position", ["after", "between-before"])
@pytest.mark.parametrize("tool", [fuse_eager, fuse_for_training, fuse_traced])
def test_a_patch_between_what_is_fused_is_kept_or_refused(tool: Tool, position: str) -> None:
    """What is fused computes nothing between convolution and normalization, where the patch was."""
    if position == "after":
        patches: Any = {path: {"wrap": "se"} for path in BETWEEN}
        names = r"layer2\.1\.conv1|layer3\.0\.conv2"
    else:
        block = {"type": "se", "position": "before"}
        patches = {path.replace("conv", "bn"): {"inject": block} for path in BETWEEN}
        names = r"layer2\.1\.bn1|layer3\.0\.bn2"
    model = ready("resnet18", patches)
    with torch.no_grad():
        right = model(X)
        try:
            found = tool(copy.deepcopy(model)).eval()(X)
        except TvcError as error:
            assert re.search(names, str(error))
            return
        assert difference(found, right) < 1e-5


def tiny(patches: Any) -> HybridModel:
    """Return a small patched network whose convolutions have biases, as VGG's."""
    model = HybridBuilder().from_module(
        Tiny(), stem="stem", stages=["layer1", "layer2"], head="fc", patches=patches
    )
    return open_gates(calibrate(model))


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 2]])
@pytest.mark.parametrize("position", ["after", "before", "parallel"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_patch_at_any_layer_of_what_is_fused(at: int, position: str, layers: list[int]) -> None:
    """What runs before the first or after the last one is kept, and runs once."""
    from torch.ao.quantization import fuse_modules

    block = {"type": "conv_bn_act", "params": {"channels": 16, "stride": 2}}
    block = block if (at, position) == (0, "parallel") else {"type": "se"}
    model = tiny({f"layer2.{at}": {"inject": {**block, "position": position}}})
    fused = fuse_modules(model, [[f"layer2.{i}" for i in layers]])
    kept = at not in layers or (at == layers[0] and position == "before")
    kept = kept or (at == layers[-1] and position == "after")
    with torch.no_grad():
        if kept:
            assert difference(fused(X), model(X)) < 1e-5
        else:
            with pytest.raises(PatchError, match=rf"layer2\.{at}\..* was folded into"):
                fused(X)


@pytest.mark.parametrize("position", ["after", "before"])
def test_a_patch_between_a_convolution_and_its_activation(position: str) -> None:
    from torch.ao.quantization import fuse_modules

    network = Tiny()
    del network.layer2[1]
    at = 0 if position == "after" else 1
    model = HybridBuilder().from_module(
        network,
        stem="stem",
        stages=["layer1", "layer2"],
        head="fc",
        patches={f"layer2.{at}": {"inject": {"type": "se", "position": position}}},
    )
    fused = fuse_modules(open_gates(model).eval(), [["layer2.0", "layer2.1"]])
    with pytest.raises(PatchError, match=r"'layer2\.1' was folded into"):
        fused(X)


def test_what_is_taken_out_is_not_taken_for_fused() -> None:
    """An activation, or a norm whose convolution has no bias, became an identity by hand."""
    model = tiny({"layer2.1": {"wrap": "se"}})
    model.layer2[2] = nn.Identity()
    assert model(X).isfinite().all()
    model = ready("resnet18", {"layer1.0.conv1": {"wrap": "se"}})
    model.layer1[0].bn1 = nn.Identity()
    assert model(X).isfinite().all()


def test_threads_that_call_a_rebuilt_model_first_move_its_hooks_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one to come must not take away what the first one runs by now."""
    model = sync_torch(tiny({"layer1.1": {"wrap": "se"}}))
    for module in model.modules():
        module.training = False
    both_wait, lock = threading.Barrier(2), threading.Lock()

    class Lock:
        def acquire(self, timeout: float) -> bool:
            with suppress(threading.BrokenBarrierError):
                both_wait.wait(5)
            return lock.acquire(timeout=timeout)

        release = lock.release

    moves: list[str] = []
    unregister = hooks._unregister
    monkeypatch.setattr(hooks, "_HANGING", Lock())
    monkeypatch.setattr(
        hooks, "_unregister", lambda *args: (moves.append("moved"), unregister(*args))
    )
    workers = [threading.Thread(target=hooks.hang, args=(model,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert moves == ["moved"]


# -- graphs ----------------------------------------------------------------------------------------


def recorded(kind: str, module: nn.Module, x: Tensor) -> Any:
    """Return a graph of a module, in which the patches that it runs stand."""
    if kind == "traced":
        return torch.jit.trace(module, x, check_trace=False)
    return torch.export.export(module, (x,)).module()


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*TracerWarning", "ignore:.*outside of"
)
@pytest.mark.parametrize("path", ["layer2", "layer2.0"])
@pytest.mark.parametrize("kind", ["traced", "exported"])
def test_a_graph_in_the_place_of_a_patched_layer_is_refused(
    kind: str, path: str, tmp_path: Path
) -> None:
    """It has the patch inside, as it was, and would run it twice or never learn."""
    model = tiny({path: {"wrap": "se"}}).requires_grad_(False)
    model.layer2 = recorded(kind, model.layer2, model.get_stage_outputs(X)[1])
    with pytest.raises(PatchError, match=rf"'{path}' is (only a name in )?a recorded graph"):
        model(X)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_traced_layer_beside_the_patches_runs_and_is_named(tmp_path: Path) -> None:
    model = tiny({"layer2": {"wrap": "se"}})
    right = model(X)
    model.layer1 = recorded("traced", model.layer1, model.get_stage_outputs(X)[0].detach())
    assert difference(model(X), right) < 1e-6
    assert "layer2" in model.eval().explain()
    with pytest.raises(WeightsError, match=r"layer1 was Sequential\(\) and is .*Traced"):
        model.save(tmp_path / "m.safetensors")


@pytest.mark.parametrize("tool", [copy.deepcopy, pickled])
def test_a_copy_runs_hooks_in_the_order_of_the_original(tool: Tool) -> None:
    """Part of the network that was handed over was a hook, which runs before the patch."""
    network = Tiny()
    network.layer1.register_forward_hook(shifted)
    model = HybridBuilder().from_module(
        network,
        stem="stem",
        stages=["layer1", "layer2"],
        head="fc",
        patches={"layer1": {"wrap": "se"}},
    )
    open_gates(model).eval()
    assert torch.equal(tool(model)(X), model(X))


def shifted(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output - 3


# -- a path that is gone ---------------------------------------------------------------------------


def test_a_patch_whose_path_is_gone_is_named(tmp_path: Path) -> None:
    model = ready("resnet18", {"layer3.1": {"wrap": "se"}, "layer2": {"wrap": "eca"}})
    model.layer3 = nn.Sequential(model.layer3[0])
    with pytest.raises(TvcError, match=r"layer3\.1"):
        model.eval()
        model(X)
    with pytest.raises(TvcError, match=r"layer3\.1"):
        model.save(tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    model.unpatch("layer3.1")
    assert model.eval()(X).shape == (2, 10)


def test_a_patch_under_an_exchanged_stage_is_named(tmp_path: Path) -> None:
    model = ready("resnet18", {"layer4.0.bn2": {"wrap": "se"}})
    model.layer4 = nn.Sequential(nn.Conv2d(256, 512, 3, 2, 1), nn.ReLU())
    with pytest.raises(TvcError, match=r"layer4\.0\.bn2"):
        model.eval()
        model(X)
    with pytest.raises(TvcError, match=r"layer4"):
        model.save(tmp_path / "m.safetensors")


def test_an_identity_at_a_patched_path_keeps_the_patch() -> None:
    """`bn2 = nn.Identity()`: the path is there, so the patch is."""
    model = ready("resnet18", {"layer2.1.bn2": {"wrap": "se"}})
    model.layer2[1].bn2 = nn.Identity()
    model.eval()
    x = torch.randn(1, 3, 64, 64)
    patch = model.get_submodule("patches.layer2.1.bn2.se")
    seen: list[int] = []
    patch.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    assert seen == [1]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("resnet18", {"layer*.*.conv2": {"wrap": "se"}, "bn1": {"wrap": "eca"}}),
        ("resnet50", {"layer3.0.downsample": {"wrap": "se"}, "layer4": {"wrap": "se"}}),
        ("mobilenet_v3_small", {"features.1.block.0": {"wrap": "se"}}),
        ("timm/test_resnet", {"stage:*.-1": {"wrap": "se"}}),
    ],
)
def test_no_suffix_finds_the_nodes_of_the_tree(name: str, patches: Any) -> None:
    """Tools pick modules by the end of their names: `conv2`, `0.conv2`, `fc`."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = HybridBuilder().from_backbone(name, None, patches=patches, num_classes=10)
    homes = {home for record in model.patch_records for home in record.paths}
    targets = {record.target for record in model.patch_records}
    nodes = {
        path
        for path, module in model.named_modules()
        if path.startswith("patches.") and not any(f"{path}.".startswith(f"{h}.") for h in homes)
    }
    endings = {".".join(t.split(".")[-n:]) for t in targets for n in range(1, 4)}
    collisions = {
        (node, ending)
        for node in nodes
        for ending in endings
        if node == ending or node.endswith(f".{ending}")
    }
    assert collisions == set()


def test_the_path_of_a_patch_is_what_its_record_says() -> None:
    model = HybridBuilder().from_torchvision(
        "resnet18", None, patches={"layer3.0.conv2": {"wrap": "se"}}, num_classes=10
    )
    (record,) = model.patch_records
    patch = model.get_submodule(record.paths[0])
    assert isinstance(patch, tvc_core.Patch)
    assert patch is model.get_submodule("patches.layer3.0.conv2.se")
    assert {id(p) for p in patch.parameters()} <= {id(p) for p in model.parameters()}
    copied = copy.deepcopy(model)
    assert copied.get_submodule(record.paths[0]) is not patch
    assert set(copied.state_dict()) == set(model.state_dict())
    doubled = copied.double()
    assert all(p.dtype == torch.float64 for p in doubled.parameters())


# -- networks of timm ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet10t"])
@pytest.mark.parametrize("tool", [sync_timm, sync_torch, new_convs])
def test_tools_on_networks_of_timm(name: str, tool: Tool, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    patches = {
        "stage:*.-1": {"wrap": {"type": "se", "position": "branch"}},
        "stage:-1": {"inject": {"type": "spatial_attention", "position": "before"}},
    }
    try:
        model = ready(f"timm/{name}", patches)
    except TvcError:
        model = ready(f"timm/{name}", {"stage:*.-1": {"wrap": "se"}})
    with torch.no_grad():
        right = model(X)
        changed = tool(copy.deepcopy(model)).eval()
        if tool is sync_torch and name != "test_resnet":
            # torch's conversion throws away the activation of timm's BatchNormAct2d
            assert changed(X).shape == right.shape
            return
        assert difference(changed(X), right) < 1e-6
    saved_right_or_not_at_all(changed, tmp_path / "m.safetensors")
    before = {name: p.detach().clone() for name, p in gates(changed).items()}
    steps(changed)
    assert all(not torch.equal(p, before[name]) for name, p in gates(changed).items())


def test_calibrated_models_differ_from_fresh_ones() -> None:
    """What the helpers of these tests say about themselves."""
    model = calibrate(HybridBuilder().from_torchvision("resnet18", None, num_classes=10))
    assert float(model.bn1.running_var.max()) != 1.0
    assert open_gates(ready("resnet18", {"layer1": {"wrap": "se"}})).layer1 is not None
