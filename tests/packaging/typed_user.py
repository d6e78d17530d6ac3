"""What a user's typed program does with tvc; `mypy --strict` must know the type of everything in
it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from tvc_core import (
    AuditReport,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    HybridModel,
    InitializerSpec,
    LoadReport,
    Patches,
    PatchOpSpec,
    Registry,
    StageInfo,
    Target,
    TvcError,
    Weights,
    audit,
    hookimpl,
    load,
    load_yaml_recipe,
    param_groups,
    partial_load,
    transfer_weights,
)

TVC_API = (1, 0)


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    return [BlockSpec(name="gate", factory="acme.gate:Gate", category="attention", gated=True)]


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    return [
        BackboneSpec(
            name="net",
            factory=build,
            stem=("conv1",),
            stages=("layer1", ("layer2", "norm")),
            head="fc",
        )
    ]


@hookimpl
def tvc_patch_ops() -> list[PatchOpSpec]:
    return [PatchOpSpec(name="twice", factory=twice)]


@hookimpl
def tvc_initializers() -> list[InitializerSpec]:
    return [InitializerSpec(name="ones", factory=ones)]


def build(spec: BackboneSpec, *, weights: None) -> nn.Module:
    return nn.Identity()


def twice(target: Target, block: type[nn.Module]) -> nn.Module:
    assert_type(target.out_channels, int)
    target.after(block(target.out_channels))
    return target.module


def ones(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.ones_(parameter)


def main(path: Path) -> None:
    builder = HybridBuilder(prefer=("tvc-attention",))
    assert_type(HybridBuilder.list_backbones("resnet*", origin="torchvision"), list[str])
    assert_type(builder.list_blocks(category="attention"), list[str])
    patches: Patches = {"layer3": {"wrap": "se"}, "layer4": {"wrap": {"type": "eca"}}}
    weights: Weights = None
    model = builder.from_torchvision(
        "resnet18", weights, patches=patches, num_classes=10, freeze_backbone=True
    )
    assert_type(model, HybridModel)
    # a comment that is not needed is an error, so each of these is one that mypy sees
    builder.from_torchvision("resnet18", freez_backbone=True)  # type: ignore[call-arg]
    builder.from_backbone("resnet18", None, patches)  # type: ignore[call-arg]
    builder.from_backbone("resnet18", weights=3)  # type: ignore[arg-type]
    builder.from_backbone("resnet18", patches=["layer3"])  # type: ignore[arg-type]
    HybridBuilder.list_backbones(patern="resnet*")  # type: ignore[call-arg]
    assert_type(builder.build(path), HybridModel)
    assert_type(load_yaml_recipe(path), HybridModel)
    assert_type(builder.create_block("se", 64, reduction=8), nn.Module)
    assert_type(model.get_stage_outputs(torch.rand(1, 3, 64, 64), stages=[-1]), list[Tensor])
    assert_type(model.stage_info, tuple[StageInfo, ...])
    assert_type(model.stage_info[0].channels, int)
    assert_type(model.explain(), str)
    assert_type(model.step0_difference, float)
    assert_type(partial_load(model, path, ignore_mismatch=True), LoadReport)
    assert_type(transfer_weights(model, model).load_ratio, float)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, layer_decay=0.8))
    with audit(model, optimizer) as report:
        assert_type(report, AuditReport)
    with model.without("layer3") as plain:
        assert_type(plain, HybridModel)
    model.freeze_backbone(unfreeze_stages=[-1])
    model.save(path)
    assert_type(load(path), HybridModel)
    assert_type(builder.load(path, module=nn.Identity()), HybridModel)
    assert_type(Registry(installed=False).plugins[0].status, str)
    try:
        builder.from_backbone("nothing")
    except TvcError as error:
        print(error)
