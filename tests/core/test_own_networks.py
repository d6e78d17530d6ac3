"""Networks that are not torchvision's: timm's and plain ones get the same services, or stay as they
were.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tvc_core
from tvc_core import (
    BackboneError,
    HybridBuilder,
    HybridModel,
    PatchError,
    RecipeError,
    StageError,
    TargetError,
    TvcError,
    UnknownNameError,
    WeightsError,
)

NARROW = {"type": "conv_bn_act", "params": {"channels": 3}}

Own = tuple[Callable[[], nn.Module], dict[str, Any]]


def sequential() -> nn.Sequential:
    def stage(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True), nn.Dropout2d(0.1)
        )

    return nn.Sequential(
        stage(3, 8),
        stage(8, 16),
        stage(16, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 11),
    )


def swin() -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(1, 1, 1),
        num_heads=(1, 2, 4),
        num_classes=11,
    )


NETWORKS: dict[str, Own] = {
    "resnet": (
        lambda: timm.create_model("resnet10t", num_classes=11),
        {
            "stem": ["conv1", "bn1", "act1", "maxpool"],
            "stages": ["layer1", "layer2", "layer3", "layer4"],
            "head": "fc",
        },
    ),
    "convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=11),
        {"stem": "stem", "stages": [f"stages.{i}" for i in range(4)], "head": "head"},
    ),
    "swin": (
        swin,
        {
            "stem": "patch_embed",
            "stages": ["layers.0", "layers.1", ("layers.2", "norm")],
            "head": "head",
            "min_size": 64,
            "fixed_size": True,
        },
    ),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=11),
        {
            "stem": ("cls_token", "pos_embed", "patch_embed", "norm_pre"),
            "stages": [("blocks.0", "blocks.1"), ("blocks.2", "blocks.3", "norm")],
            "head": "head",
            "min_size": 64,
            "fixed_size": True,
        },
    ),
    "sequential": (sequential, {"stem": "0", "stages": ["1", "2"], "head": "5"}),
}


@pytest.fixture(params=NETWORKS)
def own(request: pytest.FixtureRequest) -> Own:
    """How to make a network, always with the same weights, and its description."""
    make, about = NETWORKS[request.param]

    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return make().eval()

    return seeded, about


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def state_of(network: nn.Module) -> Any:
    """Everything of a network and of torch's random state that a failed build could change."""
    return (
        [
            (
                name,
                type(m),
                m.training,
                sorted(m.__dict__),
                [list(v) for v in m.__dict__.values() if isinstance(v, dict)],
            )
            for name, m in network.named_modules()
        ],
        [
            (n, id(p), p.requires_grad, p.shape, p.detach().double().sum().item())
            for n, p in network.named_parameters()
        ],
        [(n, id(b), b.double().sum().item()) for n, b in network.named_buffers()],
        [(n, m.p) for n, m in network.named_modules() if isinstance(m, nn.Dropout)],
        torch.get_rng_state().tolist(),
    )


def test_a_network_of_ones_own_keeps_type_names_and_outputs(
    builder: HybridBuilder, own: Own, x: Tensor
) -> None:
    make, about = own
    plain = make()
    model = builder.from_module(make(), **about)
    assert isinstance(model, type(plain)) and isinstance(model, HybridModel)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(x), plain(x))
    assert sum(part.num_parameters for part in model.freeze_report().parts) == sum(
        p.numel() for p in plain.parameters()
    )


def test_its_patches_start_as_the_identity_and_have_an_effect(
    builder: HybridBuilder, own: Own, x: Tensor
) -> None:
    make, about = own
    stages = [stage if isinstance(stage, str) else stage[0] for stage in about["stages"]]
    model = builder.from_module(make(), **about, patches={path: {"wrap": "se"} for path in stages})
    want = make()(x)
    assert torch.equal(model(x), want) and model.step0_difference == 0
    assert set(make().state_dict()) == {
        key for key in model.state_dict() if not key.startswith("patches.")
    }
    for path in stages:
        alpha = model.get_parameter(f"patches.{path}.se.alpha")
        with torch.no_grad():
            alpha.fill_(1.0)
            assert not torch.equal(model(x), want), path
            alpha.zero_()


def test_its_head_changes_and_its_stages_thaw_one_by_one(
    builder: HybridBuilder, own: Own, x: Tensor
) -> None:
    make, about = own
    model = builder.from_module(make(), **about, num_classes=5, freeze_backbone=True)
    assert model(x).shape == (2, 5) and model.num_classes == 5
    counts = []
    for number in range(len(about["stages"]) + 1):
        model.freeze_backbone(
            unfreeze_stages=list(range(len(about["stages"])))[len(about["stages"]) - number :]
        )
        counts.append(model.count_parameters(trainable_only=True))
    assert counts == sorted(set(counts)) and counts[-1] < model.count_parameters()


def test_its_features_are_the_outputs_of_its_stages(
    builder: HybridBuilder, own: Own, x: Tensor
) -> None:
    make, about = own
    plain, seen = make(), {}
    for index, stage in enumerate(about["stages"]):
        last = stage if isinstance(stage, str) else stage[-1]
        plain.get_submodule(last).register_forward_hook(
            lambda m, a, out, i=index: seen.update({i: out.detach().clone()})
        )
    plain(x)
    model = builder.from_module(make(), **about)
    for index, found in enumerate(model.get_stage_outputs(x)[1:]):
        want = seen[index]
        if want.ndim == 3:  # ViT: the class token, then 4 x 4 tokens
            want = want[:, 1:].transpose(1, 2).reshape(2, -1, 4, 4)
        elif model.stage_info[index].layout == "NHWC":
            want = want.permute(0, 3, 1, 2)
        assert torch.equal(found, want)
        assert model.stage_info[index].channels == want.shape[1]
        assert model.stage_info[index].stride == 64 // want.shape[2]
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))


def test_it_is_copied_pickled_and_read_back_from_a_file(
    builder: HybridBuilder, own: Own, x: Tensor, tmp_path: Path
) -> None:
    make, about = own
    first = about["stages"][0] if isinstance(about["stages"][0], str) else about["stages"][0][0]
    model = builder.from_module(
        make(),
        **about,
        patches={first: {"wrap": "eca"}},
        num_classes=3,
        freeze_backbone=True,
        name="mine",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    want = model.eval()(x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert (
        len(pickle.dumps(model))
        < 1.3 * sum(t.numel() * t.element_size() for t in model.state_dict().values()) + 500_000
    )
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
    path = tmp_path / "own.safetensors"
    model.save(path)
    again = tvc_core.load(path, module=make())
    assert torch.equal(again.eval()(x), want)
    assert again.explain() == model.explain() and again.freeze_state() == model.freeze_state()
    assert "from_module:mine" in model.explain() and "weights: the module's own" in model.explain()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stages": ["layer1", "layer2", "layer3"]}, BackboneError),  # layer4 has no part
        ({"stages": ["layer1", "layer2", "layer3", "layer5"]}, BackboneError),
        ({"stages": "layer1"}, BackboneError),
        ({"stages": [1]}, BackboneError),
        ({"head": "avgpool"}, BackboneError),
        ({"name": "Mine!"}, BackboneError),
        ({"num_channels": 4}, BackboneError),
        ({"num_classes": -1}, RecipeError),
        ({"class_names": ["a"], "num_classes": 5}, RecipeError),
        (
            {"num_classes": 5, "freeze_backbone": True, "unfreeze_stages": [7]},
            StageError,
        ),
        ({"patches": {"layer9": {"wrap": "se"}}}, TargetError),
        ({"patches": {"layer1": {"wrap": "nonsense"}}}, UnknownNameError),
        ({"patches": {"layer2": {"wrap": "se"}, "layer1": {"replace": NARROW}}}, PatchError),
    ],
)  # fmt: skip
def test_a_network_is_as_it_was_when_the_build_fails(
    builder: HybridBuilder, change: Any, error: type[TvcError]
) -> None:
    make, about = NETWORKS["resnet"]
    network = make()
    network.layer1.eval()
    network.conv1[0].weight.requires_grad_(False)
    before = state_of(network)
    with pytest.raises(error):
        builder.from_module(network, **{**about, **change})
    assert state_of(network) == before


def test_what_fails_late_is_undone(builder: HybridBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the input, the patches, the head, its dropout and the class have all changed."""
    make, about = NETWORKS["sequential"]
    network = nn.Sequential(*make(), nn.Dropout(0.5))
    network[5] = nn.Sequential(nn.Dropout(0.5), nn.Linear(24, 11))
    before = state_of(network)

    def fail(*_: Any, **__: Any) -> None:
        raise StageError("late")

    monkeypatch.setattr(HybridModel, "freeze_backbone", fail)
    with pytest.raises(StageError, match="late"):
        builder.from_module(
            network,
            **about,
            patches={"1": {"wrap": "se"}},
            num_classes=3,
            dropout=0.1,
            freeze_backbone=True,
            in_channels=5,
        )
    assert state_of(network) == before


def test_what_is_no_plain_network_is_refused(builder: HybridBuilder) -> None:
    make, about = NETWORKS["sequential"]
    model = builder.from_module(make(), **about)
    with pytest.raises(BackboneError, match="hybrid already"):
        builder.from_module(model, **about)
    with pytest.raises(BackboneError, match="takes a network"):
        builder.from_module("resnet18", **about)  # type: ignore[arg-type]


def test_nobody_can_rebuild_or_prepare_images_for_it_but_its_maker(builder: HybridBuilder) -> None:
    make, about = NETWORKS["sequential"]
    model = builder.from_module(make(), **about)
    with pytest.raises(BackboneError, match="module of your own"):
        model.transforms()
    with pytest.raises(UnknownNameError, match="from_module"):
        builder.build(model.recipe)


def test_loading_needs_a_module_that_fits_and_leaves_others_alone(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    make, about = NETWORKS["resnet"]
    path = tmp_path / "own.safetensors"
    builder.from_module(make(), **about).save(path)
    with pytest.raises(WeightsError, match=r"timm.models.resnet.ResNet.*module=network"):
        tvc_core.load(path)
    wrong: list[tuple[nn.Module, type[TvcError], str]] = [
        (sequential(), BackboneError, "made from timm.models.resnet.ResNet"),
        (timm.create_model("resnet14t", num_classes=11), WeightsError, "does not fit"),
        (
            timm.create_model("resnet10t", num_classes=11, in_chans=1),
            WeightsError,
            r"conv1\.0\.weight has the shape \[24, 3, 3, 3\], its recipe gives \[24, 1, 3, 3\]",
        ),
    ]
    for network, error, text in wrong:
        before = state_of(network)
        with pytest.raises(error, match=text):
            tvc_core.load(path, module=network)
        assert state_of(network) == before
    builder.from_torchvision("resnet18", None).save(path)
    with pytest.raises(WeightsError, match="leave module out"):
        tvc_core.load(path, module=make())


class WithAuxiliary(nn.Module):
    """Logits, and in training those of an auxiliary head behind the first stage, as GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.Conv2d(8, 16, 3, 2, 1),
        )
        self.aux, self.fc = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 11)),
            nn.Linear(16, 11),
        )

    def forward(self, x: Tensor) -> Any:
        one = self.one(self.stem(x))
        logits = self.fc(self.two(one).mean((2, 3)))
        return (logits, self.aux(one)) if self.training else logits


AUXILIARY: dict[str, Any] = {
    "stem": "stem",
    "stages": ["one", "two"],
    "head": "fc",
    "auxiliary": {"aux": 0},
}


def test_an_auxiliary_head_gets_its_classes_and_belongs_to_its_stage(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    model = builder.from_module(
        WithAuxiliary(), **AUXILIARY, num_classes=3, patches={"one": {"wrap": "se"}}
    )
    x = torch.randn(2, 3, 64, 64)
    assert [tuple(logits.shape) for logits in model.train()(x)] == [(2, 3), (2, 3)]
    model.freeze_backbone()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if not name.startswith("patches.")} == {
        f"{p}.{t}" for p in ("aux.2", "fc") for t in ("weight", "bias")
    }
    model.save(tmp_path / "aux.safetensors")
    again = tvc_core.load(tmp_path / "aux.safetensors", module=WithAuxiliary())
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_an_auxiliary_head_learns_nothing_where_the_head_learns_nothing(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    model = builder.from_module(WithAuxiliary(), **AUXILIARY, num_classes=3)
    for unfreeze_stages in (None, [0, 1]):
        model.freeze_backbone(unfreeze_stages, head="none")
        model.train()
        assert not any(p.requires_grad for p in (*model.aux.parameters(), *model.fc.parameters()))
        assert not any(module.training for module in (*model.aux.modules(), model.fc))
        assert model.one.weight.requires_grad is model.one.training is (unfreeze_stages is not None)
    model.reset_classifier(4)
    assert not any(p.requires_grad for p in (*model.aux.parameters(), *model.fc.parameters()))
    model.save(tmp_path / "aux.safetensors")
    again = tvc_core.load(tmp_path / "aux.safetensors", module=WithAuxiliary())
    assert again.count_parameters(True) == model.count_parameters(True) > 0
    model.unfreeze_all()
    assert model.count_parameters(True) == model.count_parameters() and model.aux.training


def test_an_auxiliary_head_is_frozen_with_a_head_that_is_not_used(builder: HybridBuilder) -> None:
    model = builder.from_module(WithAuxiliary(), **AUXILIARY).train()
    tvc_core.freeze_head(model)
    sum(map(torch.sum, model.get_stage_outputs(torch.randn(2, 3, 64, 64)))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("auxiliary", "said"),
    [
        (None, "together lack aux.2"),
        ({"aus": 0}, "no auxiliary head 'aus'"),
        ({"aux": 2}, "not a mapping of paths to stage"),
    ],
)
def test_an_auxiliary_head_that_does_not_fit_is_refused(
    builder: HybridBuilder, auxiliary: Any, said: str
) -> None:
    with pytest.raises(BackboneError, match=said):
        builder.from_module(WithAuxiliary(), **{**AUXILIARY, "auxiliary": auxiliary})


class Encoder(nn.Module):
    """Two of torch's encoder layers, which in eval mode take a fused path that rounds otherwise,
    unless they have hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, 16, 16))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
                for _ in "12"
            )
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(
            self.layers(self.embed(x).flatten(2).transpose(1, 2) + self.positions).mean(1)
        )


def test_a_network_of_one_size_is_described_at_that_size(builder: HybridBuilder) -> None:
    make, about = NETWORKS["swin"]
    model = builder.from_module(make(), **about)
    assert {info.image for info in tvc_core.describe_model(model)} == {(64, 64)}
    with pytest.raises(BackboneError, match="does not accept images of 224x224 pixels"):
        tvc_core.describe_model(model, size=224)


def test_torchs_fused_encoder_layers_can_be_patched(builder: HybridBuilder) -> None:
    for seed in range(4):  # the difference in rounding is not seen for each
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "stem": ("positions", "embed"),
            "stages": ("layers.0", "layers.1"),
            "head": "fc",
        }
        size: dict[str, Any] = {"min_size": 32, "fixed_size": True}
        model = builder.from_module(
            Encoder(), **parts, patches={"layers.0": {"wrap": "se"}}, **size
        )
        assert model.step0_difference == 0.0
    assert torch.backends.mha.get_fastpath_enabled()


# -- names of the network that mean something else on a hybrid -------------------------------------


class Hiding(nn.Module):
    """A child, methods and an attribute that have names of the hybrid's, used by its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.recipe = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)
        self.num_classes, self.without = "five", lambda x: x

    def save(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def explain(self, x: Tensor) -> Tensor:
        return self.without(self.fc(self.save(x)))

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_classes == "five"
        return self.explain(self.recipe(self.stem(x)))


def test_from_module_says_which_names_the_hybrid_hides(builder: HybridBuilder, x: Tensor) -> None:
    network = Hiding().eval()
    wanted = network(x)
    with pytest.warns(UserWarning) as caught:
        model = builder.from_module(network, "stem", ["recipe"], "fc")
    (warning,) = caught
    message = str(warning.message)
    assert "Hiding becomes a hybrid: of its names explain, num_classes, recipe, save the" in message
    assert "its attributes without hide the hybrid's methods of that name" in message
    assert warning.filename == __file__ and type(warning.message) is UserWarning
    assert torch.equal(model(x), wanted), "its own forward still finds its own"
    assert model.recipe.backbone == "from_module:hiding" and model.num_classes == 5
    assert "weights: the module's own" in model.explain()
    assert isinstance(model.get_submodule("recipe"), nn.Conv2d)
    assert torch.equal(Hiding.save(model, torch.ones(1, 8, 2, 2)), torch.ones(1, 8))


class HidingParts(nn.Module):
    """Every part has a name of the hybrid's."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.recipe = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.save = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.save(self.recipe(self.pyramid(x)).mean((2, 3)))


def test_parts_with_names_of_the_hybrids_get_every_service(
    builder: HybridBuilder, x: Tensor, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"stem": "pyramid", "stages": ["recipe"], "head": "save"}
    patches: Any = {"recipe": {"wrap": "se"}}
    with pytest.warns(UserWarning, match="of its names pyramid, recipe, save the"):
        model = builder.from_module(
            HidingParts(), **parts, patches=patches, num_classes=3, freeze_backbone=True
        )
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    assert [tuple(m.shape[1:]) for m in model.get_stage_outputs(x)] == [(8, 32, 32), (8, 16, 16)]
    assert "head: save (Linear), 3 classes" in model.explain()
    model.reset_classifier(4)
    model.freeze_backbone(unfreeze_stages=-1)
    model.save(tmp_path / "own.safetensors")
    again = tvc_core.load(tmp_path / "own.safetensors", module=HidingParts())
    assert torch.equal(again.eval()(x), model.eval()(x)) and again.get_submodule("") is again
    model.unpatch()
    assert model.patch_records == () and torch.equal(model(x), again(x))


def test_a_network_without_such_names_is_no_matter_for_a_warning(
    builder: HybridBuilder, recwarn: pytest.WarningsRecorder
) -> None:
    class Plain(nn.Sequential):
        def train(self, mode: bool = True) -> Plain:  # nn.Module's own name
            return super().train(mode)

    builder.from_module(Plain(*sequential()), **NETWORKS["sequential"][1])
    assert not [warning for warning in recwarn if "becomes a hybrid" in str(warning.message)]


def test_where_a_hidden_name_is_an_error_the_network_stays_itself(builder: HybridBuilder) -> None:
    network = Hiding()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="becomes a hybrid"):
            builder.from_module(network, "stem", ["recipe"], "fc")
    assert type(network) is Hiding and network.num_classes == "five"
