"""A hybrid is its backbone, for every tool that takes a torch module."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import (
    BackboneSpec,
    BlockSpec,
    FreezeError,
    HybridBuilder,
    HybridModel,
    Registry,
    UnknownNameError,
    hookimpl,
)

PATCHES = {
    "layer1": {"wrap": "gate"},
    "layer2.conv": {"wrap": "conv"},
    "layer3": {"inject": "gate"},
}


def open_gates(model: nn.Module) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.6)
    return model


@pytest.fixture
def patched(tiny: Any) -> Any:
    """The small network with three blocks that do something, in evaluation mode."""
    return open_gates(tiny(PATCHES)).eval()


# -- what it is ------------------------------------------------------------------------------------


def test_a_hybrid_is_an_instance_of_its_backbones_class(
    builder: HybridBuilder, patched: Any
) -> None:
    model = builder.from_backbone("resnet18", weights=None, patches={"layer3": {"wrap": "se"}})
    assert isinstance(model, torchvision.models.ResNet) and isinstance(model, HybridModel)
    assert type(model).__name__ == "HybridResNet"
    assert type(model) is type(builder.from_backbone("resnet18", None))
    assert torchvision.models.resnet18().__class__ is torchvision.models.ResNet


def test_two_builders_do_not_see_each_others_names(lab: Any) -> None:
    one, other = lab(BlockSpec(name="mine", factory=nn.Identity)), lab()
    assert "mine" in one.list_blocks() and "mine" not in other.list_blocks()
    with pytest.raises(UnknownNameError, match="mine"):
        other.from_backbone("tiny", weights=None, patches={"layer1": {"wrap": "mine"}})


# -- copies ----------------------------------------------------------------------------------------


def saved_whole(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_whole]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_equal_and_independent(patched: Any, images: Tensor, way: Any) -> None:
    other = way(patched)
    expected, features = patched(images), patched.get_stage_outputs(images)
    assert type(other) is type(patched) and torch.equal(other(images), expected)
    assert other.explain() == patched.explain()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(patched(images), expected) and not torch.equal(other(images), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(features, patched.get_stage_outputs(images), strict=True)
    )
    assert not any(
        torch.equal(a, b) for a, b in zip(features, other.get_stage_outputs(images), strict=True)
    )
    other.reset_classifier(2)
    other.freeze_backbone()
    assert patched.num_classes == 7 and all(
        parameter.requires_grad for parameter in patched.parameters()
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_copys_patches_are_those_in_its_tree(patched: Any, images: Tensor, way: Any) -> None:
    other = way(patched)
    before = other(images)
    with torch.no_grad():
        other.patches.layer1.gate.alpha.zero_()
    assert not torch.equal(other(images), before)


def test_the_state_dict_round_trip(patched: Any, tiny: Any, images: Tensor) -> None:
    other = tiny(PATCHES).eval()
    assert not torch.equal(other(images), patched(images))
    other.load_state_dict(patched.state_dict())
    assert torch.equal(other(images), patched(images))


# -- tools -----------------------------------------------------------------------------------------


def test_tracing_gives_the_same_outputs(patched: Any, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(patched, images)
    assert torch.equal(traced(images), patched(images))


def test_fx_gives_the_same_outputs(patched: Any, images: Tensor) -> None:
    assert torch.equal(torch.fx.symbolic_trace(patched)(images), patched(images))


def test_one_graph_holds_the_whole_forward_pass(patched: Any, images: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(patched, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), patched(images))
    patched.get_stage_outputs(images)
    torch.testing.assert_close(compiled(images), patched(images))


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_batch_has_the_patches(
    patched: Any, images: Tensor, strict: bool
) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(patched, (images,), dynamic_shapes=({0: batch},), strict=strict)
    more = torch.cat([images, images])
    torch.testing.assert_close(program.module()(more), patched(more))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_under_ddp_training_works_and_thawing_is_refused(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES, freeze_backbone=True)
    other = copy.deepcopy(model)
    ddp = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(0)
    ddp(images).sum().backward()
    torch.manual_seed(0)
    other(images).sum().backward()
    assert torch.equal(model.fc.weight.grad, other.fc.weight.grad)
    layer, state = model.fc, model.freeze_state()
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    for change in (
        model.unfreeze_all,
        lambda: model.freeze_backbone([2]),
        lambda: model.reset_classifier(3, dropout=0.5),
    ):
        with pytest.raises(FreezeError, match="DistributedDataParallel"):
            change()
    assert model.fc is layer and model.freeze_state() == state
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    model.freeze_backbone()  # nothing changes, so nothing is refused
    other.unfreeze_all()  # another model
    model = ddp.module
    del ddp
    model.unfreeze_all()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.usefixtures("process_group")
def test_fsdp2_shards_a_hybrid(tiny: Any, images: Tensor) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = open_gates(tiny(PATCHES)).eval()
    expected = model(images)
    keys = list(model.state_dict())
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    torch.testing.assert_close(model(images), expected)
    model(images).sum().backward()
    assert list(model.state_dict()) == keys and all(
        parameter.grad is not None for parameter in model.parameters()
    )


# -- backbones whose own methods have the hybrid's names -------------------------------------------


def from_timm(spec: BackboneSpec, *, weights: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(spec.name, pretrained=False, num_classes=11, **options)


def stages(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{index}" for index in range(count))


class Timm:
    """timm's networks, whose forward calls self.forward_features, and which have children `stages`
    and `head`.
    """

    TVC_OWNER = "timm-lab"

    @hookimpl
    def tvc_backbones(self) -> list[BackboneSpec]:
        shared: dict[str, Any] = {"factory": from_timm, "origin": "timm"}
        vit = BackboneSpec(
            name="vit_tiny_patch16_224",
            stem=("cls_token", "pos_embed", "patch_embed", "pos_drop", "patch_drop", "norm_pre"),
            stages=(stages("blocks", 6), (*(f"blocks.{i}" for i in range(6, 12)), "norm")),
            head="head",
            **shared,
        )
        swin = BackboneSpec(
            name="swin_tiny_patch4_window7_224",
            stem=("patch_embed",),
            stages=("layers.0", "layers.1", "layers.2", ("layers.3", "norm")),
            head="head",
            **shared,
        )
        return [
            BackboneSpec(
                name="resnet18",
                stem=("conv1", "bn1", "act1", "maxpool"),
                stages=("layer1", "layer2", "layer3", "layer4"),
                head="fc",
                **shared,
            ),
            BackboneSpec(
                name="convnext_atto",
                stem=("stem",),
                stages=(*stages("stages", 3), ("stages.3", "norm_pre")),
                head="head",
                **shared,
            ),
            vit,
            swin,
        ]


TIMM = {
    "resnet18": ("layer3", "NCHW", 64),
    "convnext_atto": ("stages.1", "NCHW", 64),
    "vit_tiny_patch16_224": (None, "NLC", 224),
    "swin_tiny_patch4_window7_224": ("layers.2", "NHWC", 224),
}


@pytest.fixture
def timms() -> HybridBuilder:
    """timm's networks and the installed attention blocks, without the installed backbone of the
    same name.
    """
    return HybridBuilder(registry=Registry([Timm()], prefer=("timm-lab",)))


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.sweep if name.startswith("swin") else ())
        for name in TIMM
    ]
)
def timm_model(
    request: pytest.FixtureRequest, timms: HybridBuilder
) -> tuple[str, Any, Any, Tensor]:
    """Name, hybrid, timm's own network with equal weights, and images."""
    path, _, side = TIMM[request.param]
    model: Any = timms.from_backbone(
        request.param, weights=None, patches={path: {"wrap": "se"}} if path else None
    ).eval()
    reference = timm.create_model(request.param, pretrained=False, num_classes=11).eval()
    missing, unexpected = reference.load_state_dict(model.state_dict(), strict=False)
    assert missing == [] and all(name.startswith("patches.") for name in unexpected)
    return (
        request.param,
        model,
        reference,
        torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)),
    )


def test_timms_networks_give_their_own_outputs(timm_model: Any) -> None:
    name, model, reference, x = timm_model
    assert isinstance(model, type(reference)) and isinstance(model, HybridModel)
    assert torch.equal(model(x), reference(x))
    assert [stage.layout for stage in model.stage_info][1] == TIMM[name][1]


def test_timms_networks_have_the_hybrids_methods(timm_model: Any) -> None:
    name, model, reference, x = timm_model
    last, own = model.get_stage_outputs(x)[-1], model.forward_features(x)
    as_map = {
        "NCHW": lambda: own,
        "NHWC": lambda: own.permute(0, 3, 1, 2),
        # without the class token
        "NLC": lambda: own[:, 1:].transpose(1, 2).unflatten(2, (last.shape[2], last.shape[3])),
    }
    assert torch.equal(last, as_map[model.stage_info[-1].layout]())
    if name != "swin_tiny_patch4_window7_224":
        assert torch.equal(model.forward_features(x), reference.forward_features(x))
    assert model.get_classifier() is [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    model.reset_classifier(5)
    assert model(x).shape == (2, 5) and model.num_classes == 5
    model.freeze_backbone()
    head = model._hybrid.anatomy.head
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith((f"{head}.", "patches."))
    }
    assert "patches: " in model.explain()


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_timms_networks_are_independent(timms: HybridBuilder, way: Any) -> None:
    model = open_gates(
        timms.from_backbone("convnext_atto", weights=None, patches={"stages.1": {"wrap": "se"}})
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    other = way(model)
    expected = model(x)
    assert torch.equal(other(x), expected) and type(other) is type(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(x), expected) and not torch.equal(other(x), expected)
    other.half().to(torch.bfloat16).train()
    assert other.stages[0].training and not model.stages[0].training


def test_timms_networks_compile_export_and_train(timms: HybridBuilder) -> None:
    torch._dynamo.reset()
    model = open_gates(
        timms.from_backbone("resnet18", weights=None, patches={"layer3": {"wrap": "se"}})
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    )
    torch.testing.assert_close(
        program.module()(x[:1].repeat(3, 1, 1, 1)), model(x[:1].repeat(3, 1, 1, 1))
    )
    model.set_grad_checkpointing()
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("process_group")
def test_fsdp2_shards_timms_networks(timms: HybridBuilder) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = open_gates(
        timms.from_backbone("resnet18", weights=None, patches={"layer3": {"wrap": "se"}})
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    torch.testing.assert_close(model(x), expected)


def test_unlike_networks_do_not_share_one_limit_of_compilations(lab: Any) -> None:
    def network_class(number: int) -> type[nn.Module]:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.stage, self.fc = (
                    nn.Conv2d(3, 4, 1),
                    nn.Conv2d(4, 4, 1),
                    nn.Linear(4, number),
                )

            # a name of the hybrid's, so forward runs on a view
            def forward_features(self, x: Tensor) -> Tensor:
                return self.stage(self.stem(x))

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.forward_features(x).mean((2, 3)))

        Net.__name__ = f"Net{number}"
        return Net

    torch._dynamo.reset()
    x = torch.ones(1, 3, 32, 32)
    # torch's own limit is not the same in every process
    with torch._dynamo.config.patch(recompile_limit=3):
        for number in range(2, 7):
            model = lab().from_module(network_class(number)(), "stem", ["stage"], "fc").eval()
            assert torch.compile(model, fullgraph=True, backend="eager")(x).shape == (1, number)
