"""State dicts of wrapped models load whole, with the real wrappers where torch and timm have them,
and with no list of their words.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm.utils
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tvc_core import WeightsError, partial_load

State = dict[str, Tensor]
CPU: dict[str, Any] = {"use_orig_params": True, "device_id": torch.device("cpu")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.features = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, 3)


class Trainer(nn.Module):
    """As a LightningModule: the network is an attribute, and there are others."""

    def __init__(self, net: nn.Module, name: str = "model") -> None:
        super().__init__()
        self.add_module(name, net)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.accuracy = nn.BatchNorm1d(3)


class Fabric(nn.Module):
    """As lightning.fabric's wrapper."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._forward_module = net


def seeded(seed: int = 7) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape))
    return net


@contextmanager
def process_group(tmp_path: Path) -> Iterator[None]:
    file = tmp_path / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def put(net: Net, path: str, wrap: Callable[[nn.Module], nn.Module]) -> Net:
    parent, _, name = path.rpartition(".")
    owner = net.get_submodule(parent)
    owner._modules[name] = wrap(net.get_submodule(path))
    return net


def checkpointed(net: Net) -> Net:
    apply_activation_checkpointing(net, check_fn=lambda module: isinstance(module, nn.Sequential))
    return net


def raw(module: nn.Module) -> State:
    """The names in the tree, as FSDP's local state dicts and older versions have them."""
    named = [*nn.Module.named_parameters(module), *nn.Module.named_buffers(module)]
    found: State = {}
    for path, each in module.named_modules(remove_duplicate=False):
        for name, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is not None:
                found[f"{path}.{name}" if path else name] = tensor.detach()
    assert len(found) >= len(named)
    return found


def fsdp_named(net: Net) -> State:
    """FSDP's own names with use_orig_params, nested as its auto wrap nests."""
    state = net.state_dict()
    return {
        "_fsdp_wrapped_module."
        + key.replace("layer1.", "layer1._fsdp_wrapped_module.").replace(
            "features.0.", "features.0._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): value
        for key, value in state.items()
    }


def ema(net: Net) -> State:
    return timm.utils.ModelEmaV3(net).state_dict()


WRAPPED: dict[str, Callable[[Net], State]] = {
    "plain": lambda net: net.state_dict(),
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compile": lambda net: torch.compile(net).state_dict(),
    "DataParallel of compile": lambda net: nn.DataParallel(torch.compile(net)).state_dict(),
    "compile of DataParallel": lambda net: torch.compile(nn.DataParallel(net)).state_dict(),
    "Lightning": lambda net: Trainer(net).state_dict(),
    "Lightning, another name": lambda net: Trainer(net, "backbone_under_test").state_dict(),
    "Lightning of compile": lambda net: Trainer(torch.compile(net)).state_dict(),
    "DataParallel of Lightning": lambda net: nn.DataParallel(Trainer(net)).state_dict(),
    "Fabric": lambda net: Fabric(net).state_dict(),
    "Fabric of DataParallel": lambda net: Fabric(nn.DataParallel(net)).state_dict(),
    "AveragedModel": lambda net: AveragedModel(net).state_dict(),
    "AveragedModel of DataParallel": lambda net: AveragedModel(nn.DataParallel(net)).state_dict(),
    "AveragedModel of compile": lambda net: AveragedModel(torch.compile(net)).state_dict(),
    "timm EMA": ema,
    "timm EMA of DataParallel": lambda net: timm.utils.ModelEmaV3(
        nn.DataParallel(net)
    ).state_dict(),
    "activation checkpointing": lambda net: checkpointed(net).state_dict(),
    "activation checkpointing, raw names": lambda net: raw(checkpointed(net)),
    "checkpointing of one layer, raw": lambda net: raw(put(net, "layer2", checkpoint_wrapper)),
    "offloading, raw": lambda net: raw(put(net, "layer1", offload_wrapper)),
    "checkpointing inside compile, raw": lambda net: raw(torch.compile(checkpointed(net))),
    "partly compiled": lambda net: put(net, "layer1", torch.compile).state_dict(),
    "partly parallel": lambda net: put(net, "features", nn.DataParallel).state_dict(),
    "partly both": lambda net: put(
        put(net, "layer2.0", torch.compile), "features", nn.DataParallel
    ).state_dict(),
    "parallel in parallel": lambda net: nn.DataParallel(
        put(net, "features", nn.DataParallel)
    ).state_dict(),
    "FSDP names": fsdp_named,
    "DeepSpeed": lambda net: {f"module.{k}": v for k, v in Fabric(net).state_dict().items()},
    "DeepSpeed of Lightning": lambda net: {
        f"_forward_module.module.{k}": v for k, v in Trainer(net).state_dict().items()
    },
    "mm": lambda net: {
        (f"head.{k}" if k.startswith("fc.") else f"backbone.{k}"): v
        for k, v in net.state_dict().items()
    },
    "DINO": lambda net: nn.DataParallel(Trainer(net, "backbone")).state_dict(),
    "CLIP": lambda net: {
        **{f"visual.trunk.{k}": v for k, v in net.state_dict().items()},
        "text.embedding": torch.rand(9, 4),
        "logit_scale": torch.rand(()),
    },
    "segments of other alphabets": lambda net: {
        f"Modell-1.größe.{k}": v for k, v in net.state_dict().items()
    },
}


def check(given: State, source: Net, target: nn.Module) -> None:
    right = {key: value.clone() for key, value in source.state_dict().items()}
    report = partial_load(target, given)
    assert report.load_ratio == 1.0, report.summary()
    found = list(target.state_dict().values())
    assert len(report.loaded) == len(right)
    for value, wanted in zip(found[-len(right) :], right.values(), strict=True):
        assert torch.equal(value, wanted)
    # every tensor of the checkpoint is in one bucket
    assert sorted([*report.sources.values(), *report.unexpected]) == sorted(given)
    if list(given) != list(right) and isinstance(target, Net):
        assert report.rules or report.prefix or report.migrated, "the report does not explain it"


def test_there_are_thirty() -> None:
    assert len(WRAPPED) >= 30


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_checkpoint_is_loaded_whole(name: str) -> None:
    plain = seeded()
    check(WRAPPED[name](seeded()), plain, Net())


@pytest.mark.parametrize("name", ["plain", "DataParallel", "timm EMA", "FSDP names"])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, AveragedModel, checkpoint_wrapper, Fabric]
)
def test_a_wrapped_model_takes_them_as_well(name: str, wrap: Callable[[Any], nn.Module]) -> None:
    target = Net()
    wrapped = wrap(target)
    report = partial_load(wrapped, WRAPPED[name](seeded()), min_loaded=0)
    assert report.num_loaded >= len(target.state_dict())
    inner = next(m for m in wrapped.modules() if isinstance(m, Net))
    for key, value in seeded().state_dict().items():
        assert torch.equal(inner.state_dict()[key], value)


def test_distributed_data_parallel_and_fsdp(tmp_path: Path) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    with process_group(tmp_path):
        given = DistributedDataParallel(seeded()).state_dict()
        check(given, seeded(), Net())
        sharded = FullyShardedDataParallel(
            put(seeded(), "layer1", lambda each: FullyShardedDataParallel(each, **CPU)), **CPU
        )
        check(sharded.state_dict(), seeded(), Net())
        target = DistributedDataParallel(Net())
        report = partial_load(target, seeded().state_dict())
        assert report.load_ratio == 1.0 and "module" in report.rules[0]


def test_two_prefixes_that_fit_alike_are_refused_with_both() -> None:
    """MoCo has two encoders; which one is meant, the file does not say."""
    first, second = seeded(1).state_dict(), seeded(2).state_dict()
    given = {
        **{f"module.encoder_q.{k}": v for k, v in first.items()},
        **{f"module.encoder_k.{k}": v for k, v in second.items()},
        "module.queue": torch.rand(4, 4),
    }
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=r"prefix='module.encoder_k.', or prefix='module.enc"):
        partial_load(model, given)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    report = partial_load(model, given, prefix="module.encoder_q.")
    assert report.prefix == "module.encoder_q." and report.load_ratio == 1.0
    assert torch.equal(model.fc.weight, first["fc.weight"])
    assert len(report.unexpected) == len(second) + 1


@pytest.mark.parametrize("front", ["", "teacher.backbone."])
def test_blocks_in_numbered_chunks(front: str) -> None:
    """DINOv2 trains with blocks.CHUNK.NUMBER, of which each number alone would fit as well."""

    def vit() -> nn.ModuleDict:
        blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Linear(4, 4)}) for _ in range(6)
        )
        return nn.ModuleDict({"patch": nn.Conv2d(3, 4, 2), "blocks": blocks})

    source, target = vit(), vit()
    given: State = {f"{front}mask_token": torch.rand(1, 4)}
    for key, value in source.state_dict().items():
        value.copy_(torch.rand(value.shape))
        parts = key.split(".")
        chunk = [str(int(parts[1]) // 2)] if parts[0] == "blocks" else []
        given[front + ".".join([parts[0], *chunk, *parts[1:]])] = value
    report = partial_load(target, given)
    assert report.unexpected == (f"{front}mask_token",) and report.load_ratio == 1.0
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert any(rule.startswith("without '0' in blocks") for rule in report.rules)


def test_a_list_of_children_is_answered_by_the_order() -> None:
    """`nn.Sequential(*network.children())` has numbers for names, and some fit by chance."""
    names = {name: str(index) for index, (name, _) in enumerate(Net().named_children())}
    given = {}
    for key, value in seeded().state_dict().items():
        first, _, rest = key.partition(".")
        given[f"encoder.{names[first]}.{rest}"] = value
    with pytest.raises(WeightsError, match="match='order'"):
        partial_load(Net(), given)
    target = Net()
    assert partial_load(target, given, match="order").load_ratio == 1.0
    assert torch.equal(target.fc.weight, seeded().fc.weight)


def test_two_prefixes_with_equal_values_are_no_question() -> None:
    state = seeded().state_dict()
    given = {f"{name}.{k}": v.clone() for name in ("student", "teacher") for k, v in state.items()}
    assert partial_load(Net(), given).load_ratio == 1.0


def test_the_prefix_of_most_wins_over_strays() -> None:
    state, stray = seeded().state_dict(), torch.rand(3, 8)
    given = {**{f"net.{k}": v for k, v in state.items()}, "fc.weight": stray}
    model = Net()
    report = partial_load(model, given)
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert report.unexpected == ("fc.weight",)


def test_names_that_fit_are_never_changed() -> None:
    """An average beside the weights themselves takes nothing from them."""
    state, average = seeded(1).state_dict(), seeded(2).state_dict()
    model = Net()
    report = partial_load(model, {**{f"ema.{k}": v for k, v in average.items()}, **state})
    assert torch.equal(model.fc.weight, state["fc.weight"]) and report.rules == ()
    assert len(report.unexpected) == len(average)


def test_half_of_an_encoder_is_not_filled_from_another() -> None:
    """What the chosen prefix lacks stays as it is, and is not taken from the other one."""
    first, second = seeded(1).state_dict(), seeded(2).state_dict()
    given = {f"q.{k}": v for k, v in first.items() if not k.startswith("layer1.0")}
    given |= {f"k.{k}": v for k, v in second.items() if not k.startswith("stem")}
    model = Net()
    report = partial_load(model, given)
    assert report.prefix == "q."
    assert set(report.missing) == {"layer1.0.weight", "layer1.0.bias"}


def test_gaps_are_not_filled_from_an_average() -> None:
    """What the weights themselves lack is missing, though the average has it."""
    state, average = seeded(1).state_dict(), seeded(2).state_dict()
    given = {k: v for k, v in state.items() if not k.startswith("layer1.0")}
    report = partial_load(Net(), {**given, **{f"ema.{k}": v for k, v in average.items()}})
    assert set(report.missing) == {"layer1.0.weight", "layer1.0.bias"} and report.rules == ()


def test_an_empty_prefix_takes_names_as_they_are() -> None:
    given = {f"module.{k}": v for k, v in seeded().state_dict().items()}
    with pytest.raises(WeightsError, match="nothing would be loaded"):
        partial_load(Net(), given, prefix="")


def test_a_prefix_that_is_not_there_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"no key begins with the prefix 'modul\.'"):
        partial_load(Net(), nn.DataParallel(seeded()).state_dict(), prefix="modul.")


def test_order_of_the_checkpoint_does_not_matter() -> None:
    for name in ("DataParallel of Lightning", "partly both", "mm", "CLIP"):
        given = WRAPPED[name](seeded())
        one, other = Net(), Net()
        a = partial_load(one, given)
        b = partial_load(other, dict(reversed(given.items())))
        assert a == b


def test_a_backbone_goes_into_the_model_that_it_is_a_part_of() -> None:
    """The other way around: the model has more in its names than the checkpoint."""
    detector = nn.ModuleDict({"backbone": nn.ModuleDict({"body": Net()}), "fpn": nn.Linear(3, 3)})
    state = seeded().state_dict()
    report = partial_load(detector, state, min_loaded=0)
    assert report.missing == ("fpn.weight", "fpn.bias")
    assert report.rules == (
        f"into the model's 'backbone' ({len(state)} tensors)",
        f"into the model's 'body' ({len(state)} tensors)",
    )
    assert torch.equal(detector["backbone"]["body"].fc.weight, state["fc.weight"])


def test_a_model_with_two_such_parts_is_no_guess() -> None:
    twins = nn.ModuleDict({"student": Net(), "teacher": Net()})
    with pytest.raises(WeightsError, match="nothing would be loaded"):
        partial_load(twins, seeded().state_dict(), min_loaded=0)


def test_a_script_module_is_filled() -> None:
    class Runs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x))

    source, target = Runs(), torch.jit.script(Runs())
    assert partial_load(target, nn.DataParallel(source).state_dict()).load_ratio == 1.0
    assert torch.equal(target.fc.weight, source.fc.weight)
