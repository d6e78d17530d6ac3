"""Wrong results without a word: every row of what a newcomer met, with what should be."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import difference, gates, open_gates
from torch import Tensor, nn

import tvc_core
from tvc_core import FreezeError, HybridBuilder, HybridModel, TvcError, WeightsError, audit


def resnet18(**arguments: Any) -> HybridModel:
    return HybridBuilder().from_torchvision("resnet18", None, **arguments)


# -- A1 --------------------------------------------------------------------------------------------


# the TorchScript exporter is deprecated, and traces
@pytest.mark.filterwarnings("ignore")
def test_a1_onnx_of_lite0_at_other_sizes(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = HybridBuilder().from_backbone("efficientnet_lite0", None).eval()
    path = tmp_path / "m.onnx"
    torch.onnx.export(
        model,
        (torch.randn(1, 3, 224, 224),),
        path,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in [(224, 224), (97, 130), (225, 225), (200, 300), (64, 65)]:
        x = torch.randn(2, 3, *size)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        with torch.no_grad():
            assert difference(found, model(x)) < 1e-4, size


# -- A2 --------------------------------------------------------------------------------------------


def attentive() -> HybridModel:
    return open_gates(resnet18(patches={"layer3": {"wrap": "se"}}, num_classes=10).eval(), 1.0)


def backbone_with_fpn(model: nn.Module) -> Callable[[Tensor], Tensor]:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    names = {"layer2": "0", "layer3": "1"}
    return BackboneWithFPN(model, names, [128, 256], 16)


def layer_getter(model: nn.Module) -> Callable[[Tensor], Tensor]:
    from torchvision.models._utils import IntermediateLayerGetter

    getter = IntermediateLayerGetter(model, {"layer3": "out"})
    return lambda x: getter(x)["out"]


def up_to(model: nn.Module) -> Callable[[Tensor], Tensor]:
    names = [name for name, _ in model.named_children()]
    return nn.Sequential(*list(model.children())[: names.index("layer3") + 1])


def by_hand(model: nn.Module) -> Callable[[Tensor], Tensor]:
    stem = (model.conv1, model.bn1, model.relu, model.maxpool)
    return nn.Sequential(*stem, model.layer1, model.layer2, model.layer3)


@pytest.mark.parametrize("tool", [layer_getter, up_to, by_hand, backbone_with_fpn])
def test_a2_parts_taken_out_are_seen(tool: Callable[..., Any]) -> None:
    model = attentive()
    x = torch.randn(1, 3, 64, 64)
    expected = model.get_stage_outputs(x, [2])[0]
    part = tool(model)
    with pytest.warns(Warning, match=r"layer3.*(get_stage_outputs|feature_extractor)"):
        found = part(x)
    if isinstance(found, Tensor):
        assert difference(found, expected) < 1e-6
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        part(x)


def test_a2_torchvisions_feature_extractor() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = attentive()
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = create_feature_extractor(model, ["layer3"])(x)["layer3"]
    named = any("patches.layer3.se" in str(each.message) for each in caught)
    assert named or difference(found, model.get_stage_outputs(x, [2])[0]) < 1e-6


def test_a2_all_children_but_the_last() -> None:
    """The commonest idiom of all cuts off the head, as of torchvision's own network."""
    model = attentive()
    x = torch.randn(1, 3, 64, 64)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    trunk = nn.Sequential(*list(model.children())[:-1])
    with pytest.warns(Warning, match=r"layer3.*(get_stage_outputs|feature_extractor)"):
        found = trunk(x)
    assert found.shape == (1, 512, 1, 1)
    assert difference(found.flatten(1), expected) < 1e-6


def test_a2_a_module_that_owns_what_it_runs() -> None:
    model = attentive()
    x = torch.randn(1, 3, 64, 64)
    expected = model.get_stage_outputs(x, [2])[0]
    patch = sum(p.numel() for n, p in model.named_parameters() if n.startswith("patches."))
    layers = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith(("conv1", "bn1", "layer1", "layer2", "layer3"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = model.feature_extractor(["layer3"])
        found = extractor(x)
    assert isinstance(extractor, nn.Module)
    found = found["layer3"] if isinstance(found, dict) else found[0]
    assert difference(found, expected) < 1e-6
    assert sum(p.numel() for p in extractor.parameters()) >= layers + patch
    double = extractor.double()(x.double())
    double = double["layer3"] if isinstance(double, dict) else double[0]
    assert double.dtype == torch.float64
    assert difference(double.float(), expected) < 1e-4


# -- A3 --------------------------------------------------------------------------------------------


def test_a3_a_loaded_model_is_ready_for_use(tmp_path: Path) -> None:
    resnet18(num_classes=4, dropout=0.5).train().save(tmp_path / "m.safetensors")
    model = tvc_core.load(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 64, 64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert torch.equal(model(x), model(x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not any(module.training for module in model.modules())


# -- A4 --------------------------------------------------------------------------------------------


def test_a4_a_model_half_thawed_by_hand() -> None:
    model = resnet18(num_classes=4)
    model.freeze_backbone()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with pytest.warns(Warning, match=r"(?s)(stem|stage|frozen).*(unfreeze_all|freeze_backbone)"):
        model.train()
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        model.train()


def test_a4_an_optimizer_made_before_thawing() -> None:
    model = resnet18(num_classes=4)
    model.freeze_backbone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    model.unfreeze_all()
    model.train()
    with audit(model, optimizer) as report:
        loss = model(torch.randn(2, 3, 64, 64)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not report.ok


def test_a4_a_freeze_state_of_another_network_is_refused() -> None:
    model = resnet18(num_classes=4)
    model.freeze_backbone()
    other = HybridBuilder().from_torchvision("mobilenet_v3_small", None, num_classes=4)
    with pytest.raises(FreezeError, match=r"stages|resnet18|mobilenet"):
        other.load_freeze_state(model.freeze_state())
    assert other.count_parameters(trainable_only=True) == other.count_parameters()
    same = resnet18(num_classes=7)
    same.load_freeze_state(json.loads(json.dumps(model.freeze_state())))
    assert same.count_parameters(trainable_only=True) == 512 * 7 + 7


# -- A5 --------------------------------------------------------------------------------------------


def test_a5_a_report_of_what_each_patch_does() -> None:
    patches = {"layer2": {"wrap": "se"}, "layer3": {"wrap": "cbam_block"}}
    model = resnet18(patches=patches, num_classes=4).eval()
    gates(model)["patches.layer3.cbam_block.alpha"].data.fill_(0.8)
    x, y = torch.randn(4, 3, 64, 64), torch.arange(4)
    report = model.patch_report((x, y))
    text = str(report)
    assert "layer2" in text and "layer3" in text
    with torch.no_grad():
        logits = model(x)
        with model.without("layer3"):
            off = model(x)
    found = {effect.target: effect for effect in report.patches}
    assert set(found) == {"layer2", "layer3"}
    inert, alive = found["layer2"], found["layer3"]
    assert inert.gate == inert.map_change == inert.logits_change == 0
    assert inert.loss == inert.loss_without
    assert alive.gate == pytest.approx(0.8)
    assert alive.map_change > 0
    expected = float((off - logits).norm() / off.norm())
    assert alive.logits_change == pytest.approx(expected, rel=1e-3)
    for loss, output in ((alive.loss, logits), (alive.loss_without, off)):
        assert loss == pytest.approx(float(nn.functional.cross_entropy(output, y)), rel=1e-4)
    assert model(x).equal(logits)


# -- A6 --------------------------------------------------------------------------------------------


def test_a6_build_does_not_overwrite(tmp_path: Path) -> None:
    pytest.importorskip("tvc_cli")
    from click.testing import CliRunner
    from tvc_cli.commands import tvc

    recipe, out = tmp_path / "r.yaml", tmp_path / "best.safetensors"
    recipe.write_text("backbone:\n  name: mobilenet_v3_small\n  weights: null\n")
    out.write_bytes(b"a trained model")
    result = CliRunner().invoke(tvc, ["build", str(recipe), "--out", str(out)])
    assert result.exit_code != 0
    assert "--force" in result.output
    assert out.read_bytes() == b"a trained model"
    result = CliRunner().invoke(tvc, ["build", str(recipe), "--out", str(out), "--force"])
    assert result.exit_code == 0, result.output
    assert tvc_core.load(out).num_classes == 1000


@pytest.mark.parametrize("name", ["m.pt", "m", "m.pth", "m.safetensors.bak"])
def test_a6_a_file_name_says_what_is_in_the_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\.safetensors"):
        resnet18(num_classes=4).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a6_no_empty_hybrid() -> None:
    with pytest.raises((TypeError, TvcError), match="HybridBuilder"):
        HybridModel()


def test_a6_replicas_of_data_parallel_are_refused() -> None:
    """On a CPU DataParallel only calls the model; its replicas would share patches."""
    model = attentive()
    x = torch.randn(2, 3, 64, 64)
    if not torch.cuda.is_available():
        assert difference(nn.DataParallel(model)(x), model(x)) == 0
    with pytest.raises(TvcError, match=r"(?s)DataParallel.*DistributedDataParallel"):
        model._replicate_for_data_parallel()


def test_a6_a_file_says_what_made_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "m.safetensors"
    model = HybridBuilder().from_backbone("timm/test_resnet", None, num_classes=4)
    model.save(path, metadata={"accuracy": "0.91", "license": "CC0"})
    with safe_open(path, "pt") as file:
        text = json.dumps(file.metadata())
    for expected in (tvc_core.__version__, torch.__version__, "tvc-timm", "accuracy", "0.91"):
        assert expected in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)  # saving twice gives equal bytes
    assert "mean" in text and "std" in text
    assert tvc_core.load(path).num_classes == 4
