"""timm's models as backbones: against timm's own models with the same tensors."""

from __future__ import annotations

import inspect
import io
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from tvc_timm.branches import BRANCHES
from tvc_timm.family import describe
from tvc_timm.names import names

from tvc_core import (
    BackboneError,
    BackboneSpec,
    HybridBuilder,
    ParameterError,
    Registry,
    TvcError,
    UnknownNameError,
    WeightsError,
    load,
    load_yaml_recipe,
)
from tvc_core.testing import parametrize_with_checks

QUICK = (
    "test_resnet",
    "test_convnext2",
    "test_efficientnet_gn",
    "mobilenetv3_small_050",
    "test_vit",
)
WIDE = (
    "resnet18",
    "seresnet50",
    "resnext50_32x4d",
    "regnety_002",
    "densenet121",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "convnextv2_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "coatnet_nano_rw_224",
    "maxvit_rmlp_pico_rw_256",
    "poolformer_s12",
    "hgnetv2_b0",
    "efficientformer_l1",
    "edgenext_xx_small",
    "ghostnet_100",
    "rexnet_100",
    "dla46_c",
    "vgg11",
    "inception_v3",
    "xception41",
    "res2net50_14w_8s",
    "eca_nfnet_l0",
    "cspresnet50",
    "levit_128s",
    "pvt_v2_b0",
    "tiny_vit_5m_224",
    "fastvit_t8",
    "repvit_m0_9",
    "mobilevit_xxs",
    "volo_d1_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_336",
    "davit_tiny",
)
"""Small members of many families."""

SIZES = {
    "inception_v3": "layers without padding cut off borders, more of them than the check allows "
    "for",
    "dla46_c": "timm's trees take sides that are multiples of 32 alone",
    "test_vit": "timm's ViT takes other sizes, for which blocks at its tokens are not made",
}
"""Models that take some other sizes of images, but not any."""

BLOCKS = ("se", "eca", "cbam_block")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is downloaded, and one thread is enough."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def builder() -> HybridBuilder:
    return HybridBuilder()


def settled(network: nn.Module) -> nn.Module:
    """Return a network with values in which no wrong mode, lost buffer or zero scale hides."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_mean" in name:
                tensor.normal_(0, 0.05, generator=generator)
            elif "running_var" in name:
                tensor.uniform_(0.8, 1.2, generator=generator)
            elif tensor.is_floating_point() and not tensor.any():
                tensor.normal_(0, 0.02, generator=generator)
    return network.eval()


def made_up(name: str, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's own model with made-up weights, and the options that let tvc find the same
    weights in a file.
    """
    torch.manual_seed(0)
    network = settled(timm.create_model(name))
    file = folder / f"{name}.pth"
    torch.save(network.state_dict(), file)
    return network, {"pretrained_cfg_overlay": {"file": str(file)}}


def images(network: Any, number: int = 2) -> Tensor:
    """Return images [N, C, H, W] of the size that timm's configuration names."""
    return torch.randn(
        number, *network.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(2)
    )


def feature_maps(name: str, network: nn.Module, modules: list[str], x: Tensor) -> dict[str, Tensor]:
    """Return timm's own `features_only` maps [N, C, H, W] of those of the modules that are
    features, with its tensors.
    """
    info = getattr(network.feature_info, "info", network.feature_info)
    wanted = {
        index: path
        for index, path in enumerate(entry["module"] for entry in info)
        if path in modules
    }
    net: Any = timm.create_model(name, features_only=True, out_indices=tuple(wanted)).eval()
    own = network.state_dict()
    inner = getattr(net, "model", net)
    state = {
        key: own.get(key, own.get(key.replace("_", ".", key.split(".")[0].count("_"))))
        for key in inner.state_dict()
    }
    if any(tensor is None for tensor in state.values()):
        return {}
    inner.load_state_dict(state)
    with torch.no_grad():
        found = net(x)
    if str(getattr(net, "output_fmt", "")).endswith("NHWC"):
        found = [each.permute(0, 3, 1, 2) for each in found]
    return dict(zip(wanted.values(), found, strict=True))


def check_patches(name: str, folder: Path, builder: HybridBuilder) -> None:
    """What every hybrid of a model of timm's has to be, whichever block stands at its stages."""
    network, options = made_up(name, folder)
    x = images(network)
    with torch.no_grad():
        wanted = network(x)
    plain: Any = builder.from_backbone(f"timm/{name}", options=options).eval()
    with torch.no_grad():
        assert torch.equal(plain(x), wanted)
        maps = plain.get_stage_outputs(x)
    assert isinstance(plain, type(network)) and list(plain.state_dict()) == list(
        network.state_dict()
    )
    stages = [info.module for info in plain.stage_info]
    for info, found in zip(plain.stage_info, maps[1:], strict=True):
        assert found.ndim == 4 and found.shape[1] == info.channels
    for path, expected in feature_maps(name, network, stages, x).items():
        assert torch.equal(maps[1 + stages.index(path)], expected), path
    for block in BLOCKS:
        model: Any = builder.from_backbone(
            f"timm/{name}", patches={"stage:*": {"wrap": block}}, options=options
        ).eval()
        assert model.step0_difference == 0.0 and len(model.patch_records) == len(stages)
        assert [key for key in model.state_dict() if not key.startswith("patches.")] == list(
            network.state_dict()
        )
        with torch.no_grad():
            assert torch.equal(model(x), wanted)
            for stage, record in enumerate(model.patch_records):
                gate = model.get_submodule(record.paths[0]).alpha
                gate.fill_(0.7)
                assert not torch.equal(model(x), wanted), f"{block} at stage {stage} has no effect"
                gate.fill_(0.0)
            for parameter in model.patches.parameters():
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1
                )
            changed = model(x)
        model.save(folder / "model.safetensors")
        others = (builder.load(folder / "model.safetensors"), pickle.loads(pickle.dumps(model)))
        with torch.no_grad():
            assert all(torch.equal(other.eval()(x), changed) for other in others)
    model.freeze_backbone(unfreeze_stages=[-1])
    model.train()
    frozen = ["stem", *(f"stage {index}" for index in range(len(stages) - 1))]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9
    )
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(x)
        (logits if isinstance(logits, Tensor) else sum(logits)).square().mean().backward()  # type: ignore[union-attr]
        optimizer.step()
    moved = {
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])
    }
    spec = builder.registry.resolve(BackboneSpec, model.recipe.backbone).spec
    stages = {f"stage {index}": paths for index, paths in enumerate(spec.stage_paths)}
    parts = {"stem": spec.stem, **stages}
    of_frozen = tuple(f"{path}." for part in frozen for path in parts[part])
    assert moved and not [key for key in moved if f"{key}.".startswith(of_frozen)]
    assert any(key.startswith("patches.") for key in moved)


# -- names -----------------------------------------------------------------------------------------


def test_the_names_are_timms_own() -> None:
    assert sorted(names()) == sorted(timm.list_models())
    assert len(HybridBuilder.list_backbones(owner="tvc-timm")) == len(timm.list_models())


def test_listing_and_reading_recipes_import_neither_torch_nor_timm(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("backbone:\n  name: timm/resnet18\n")
    code = (
        "import sys\nfrom tvc_core import HybridBuilder, Recipe\nfrom tvc_core.recipe import "
        "load_recipe\n"
        "assert HybridBuilder.list_families() == ['timm']\n"
        "assert 'timm/resnet50' in HybridBuilder.list_backbones('timm/resnet*')\n"
        "assert not any(name.startswith('timm/') for name in HybridBuilder.list_backbones())\n"
        f"assert load_recipe({str(tmp_path / 'recipe.yaml')!r}).backbone == 'timm/resnet18'\n"
        "print(sorted({'timm', 'torch', 'tvc_timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['tvc_timm']\n", done.stdout


def test_the_command_lists_without_importing_timm(tmp_path: Path) -> None:
    code = (
        "import atexit, pathlib, runpy, sys\n"
        f"note = pathlib.Path({str(tmp_path / 'imported')!r})\n"
        "atexit.register(lambda: note.write_text(' '.join({'timm', 'torch', 'tvc_timm'} & "
        "set(sys.modules))))\n"
        "sys.argv = ['tvc', 'list', 'backbones', '--owner', 'tvc-timm', 'resnet1*']\n"
        "runpy.run_module('tvc_cli', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "timm/resnet18 " in done.stdout and (tmp_path / "imported").read_text() == "tvc_timm", (
        done.stderr
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet51", "Did you mean 'timm/resnet51q'"),
        ("timm/resnet50.a1", "Did you mean 'timm/resnet50.a1_in1k'"),
        ("timm/resnet18.a1_in1k.x", "has no weights"),
    ],
)
def test_an_unknown_model_or_tag_says_what_is_near(
    name: str, said: str, builder: HybridBuilder
) -> None:
    with pytest.raises(UnknownNameError, match=said):
        builder.from_backbone(name)


@pytest.mark.parametrize(
    "name",
    [
        "hrnet_w18_small",
        "crossvit_9_240",
        "coat_tiny",
        "deepseek_vit_412m",
        "deepseek_vit_412m_enc",
    ],
)
def test_a_model_without_stages_or_classifier_is_refused_with_the_reason(
    name: str, builder: HybridBuilder
) -> None:
    with pytest.raises(BackboneError, match=rf"timm/{name} cannot be a backbone of tvc: \w+"):
        builder.from_backbone(f"timm/{name}", None)


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_model_can_be_patched_frozen_and_saved_as_torchvisions(
    name: str, tmp_path: Path, builder: HybridBuilder
) -> None:
    check_patches(name, tmp_path, builder)


@pytest.mark.sweep
@pytest.mark.parametrize("name", WIDE)
def test_small_members_of_many_families_can(
    name: str, tmp_path: Path, builder: HybridBuilder
) -> None:
    check_patches(name, tmp_path, builder)


@parametrize_with_checks("tvc_timm.plugin", names=["timm/test_convnext", "timm/test_resnet"])
def test_the_plugin_keeps_the_rules(check: Any) -> None:
    check()


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*QUICK, *WIDE])
def test_the_families_keep_the_rules_for_backbones(name: str) -> None:
    from tvc_core.testing import check_plugin

    skip = (
        dict.fromkeys(("backbone_stages", "backbone_sizes", "backbone_last_stage"), SIZES[name])
        if name in SIZES
        else {}
    )
    check_plugin("tvc_timm.plugin", names=[f"timm/{name}"], skip=skip)


@pytest.mark.parametrize(
    ("name", "stages", "head", "neck", "auxiliary"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], "fc", ("global_pool",), {}),
        (
            "mobilenetv3_small_050",
            ["blocks.0", "blocks.1", "blocks.3", "blocks.5"],
            "classifier",
            ("conv_head", "norm_head"),
            {},
        ),
        (
            "vit_tiny_patch16_224",
            ["blocks.2", "blocks.5", "blocks.8", "norm"],
            "head",
            ("fc_norm", "head_drop"),
            {},
        ),
        (
            "deit_tiny_distilled_patch16_224",
            ["blocks.2", "blocks.5", "blocks.8", "norm"],
            "head",
            (),
            {"head_dist": 3},
        ),
        (
            "efficientnet_b0",
            ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"],
            "classifier",
            (),
            {},
        ),
    ],
)
def test_the_parts_are_where_the_architecture_has_them(
    name: str, stages: list[str], head: str, neck: tuple[str, ...], auxiliary: dict[str, int]
) -> None:
    spec = Registry().resolve(BackboneSpec, f"timm/{name}").spec
    assert [paths[-1] for paths in spec.stage_paths] == stages and spec.head == head
    assert set(neck) <= set(spec.neck) and dict(spec.auxiliary) == auxiliary


# -- weights ---------------------------------------------------------------------------------------


def test_weights_are_timms_tags_and_come_from_its_cache(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    network, _ = made_up("test_resnet", tmp_path)
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    torch.save(network.state_dict(), snapshot / "pytorch_model.bin")
    x = images(network)
    for name, weights in (
        ("timm/test_resnet", "DEFAULT"),
        ("timm/test_resnet.r160_in1k", "r160_in1k"),
    ):
        model = builder.from_backbone(name, weights, options={"cache_dir": str(tmp_path)}).eval()
        with torch.no_grad():
            assert torch.equal(model(x), network(x))
        assert model.recipe.weights == "r160_in1k" and model.class_names is not None


def test_offline_weights_are_an_error_that_says_what_to_do(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    with pytest.raises(
        WeightsError,
        match=r"'r160_in1k' of timm/test_resnet cannot be downloaded or read.*weights=None",
    ):
        builder.from_backbone("timm/test_resnet", options={"cache_dir": str(tmp_path)})


def test_a_file_of_another_model_is_an_error_for_any_number_of_classes(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    _, options = made_up("test_convnext", tmp_path)
    for more in ({}, {"num_classes": 3}, {"num_classes": 0}):
        with pytest.raises(WeightsError, match="test_resnet cannot be loaded"):
            builder.from_backbone("timm/test_resnet", options={**options, **more})


def test_tags_of_other_classes_and_sizes_build_what_timm_builds(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    name = "vit_tiny_patch16_384"
    spec = builder.registry.resolve(BackboneSpec, f"timm/{name}").spec
    assert spec.fixed_size and spec.min_size == 384 and spec.weights[0].crop_size == 384
    spec = builder.registry.resolve(BackboneSpec, "timm/vit_tiny_patch16_224").spec
    found = {weights.name: (weights.num_classes, dict(weights.options)) for weights in spec.weights}
    assert found["augreg_in21k"] == (21843, {"num_classes": 21843}) and found[
        "augreg_in21k_ft_in1k"
    ] == (1000, {})


@pytest.mark.parametrize("use_test_size", [False, True])
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_384", "convnextv2_nano.fcmae_ft_in22k_in1k_384"]
)
def test_transforms_are_those_of_timms_evaluation(
    name: str, use_test_size: bool, builder: HybridBuilder
) -> None:
    with pytest.warns(UserWarning, match="no pretrained weights"):
        model = builder.from_backbone(f"timm/{name}", None)
        prepare = model.transforms(use_test_size=use_test_size)
    config = resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(name).to_dict(), use_test_size=use_test_size
    )
    assert (config["crop_mode"] == "squash") is ("_384" in name and "convnext" in name)
    assert prepare.crop_size == [config["input_size"][1]]
    values = torch.randint(
        0, 256, (300, 421, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    image = Image.fromarray(values.numpy())
    torch.testing.assert_close(
        prepare(image), create_transform(**config, is_training=False)(image), rtol=0, atol=1e-5
    )


# -- what a recipe reaches -------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers every request with the file that it has, and notes that it was asked."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.content)  # type: ignore[attr-defined]

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("server")
    made_up("test_resnet", folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        found.asked, found.content = [], (folder / "test_resnet.pth").read_bytes()  # type: ignore[attr-defined]
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_what_opens_addresses_and_paths_is_for_code_only(builder: HybridBuilder) -> None:
    for name in ("test_resnet", "test_vit", "mobilenetv3_small_050"):
        spec = builder.registry.resolve(BackboneSpec, f"timm/{name}").spec
        signature = inspect.signature(timm.create_model).parameters
        loading = {"pretrained_cfg_overlay", "cache_dir", "checkpoint_path", "pretrained_cfg"}
        assert loading <= set(signature)
        assert (
            set(spec.code_only)
            == loading & set(spec.options)
            == {"pretrained_cfg_overlay", "cache_dir"}
        )


@pytest.mark.parametrize(
    "options",
    [
        "pretrained_cfg_overlay: {url: 'ADDRESS/innocent.pth', hf_hub_id: ''}",
        "pretrained_cfg_overlay: {url: 'ADDRESS/innocent.pth', hf_hub_id: ''}, cache_dir: FOLDER",
        "pretrained_cfg_overlay: {file: FOLDER/own.pth}",
        "cache_dir: FOLDER",
    ],
)
@pytest.mark.parametrize("weights", ["DEFAULT", "null"])
def test_a_recipe_reaches_neither_an_address_nor_a_path(
    tmp_path: Path, server: ThreadingHTTPServer, options: str, weights: str
) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    options = options.replace("ADDRESS", address).replace("FOLDER", str(tmp_path / "planted"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"backbone:\n  name: timm/test_resnet\n  weights: {weights}\n  options: {{{options}}}\n"
    )
    opened: list[str] = []
    listening = True

    def hear(event: str, arguments: tuple[Any, ...]) -> None:  # no hook can be taken away
        if listening and (
            event == "socket.connect" or (event == "open" and "planted" in str(arguments[0]))
        ):
            opened.append(f"{event} {arguments}")

    sys.addaudithook(hear)
    with pytest.raises(TvcError, match=r"pretrained_cfg_overlay|cache_dir") as error:
        load_yaml_recipe(recipe)
    listening = False
    assert not isinstance(error.value, WeightsError), "the file was looked for"
    assert opened == [] and server.asked == []  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_code_gives_the_place_of_the_weights(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    address = f"http://127.0.0.1:{server.server_port}/own.pth"
    overlay = {"url": address, "hf_hub_id": ""}
    options = {"pretrained_cfg_overlay": overlay, "cache_dir": str(tmp_path)}
    model = HybridBuilder().from_backbone("timm/test_resnet", options=options).eval()
    expected = torch.load(io.BytesIO(server.content), weights_only=True)  # type: ignore[attr-defined]
    assert server.asked  # type: ignore[attr-defined]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_saved_model_does_not_ask_for_the_file_that_its_weights_came_from(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    file = tmp_path / "own.pth"
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), file)
    options = {
        "pretrained_cfg_overlay": {"file": str(file), "num_classes": 7},
        "cache_dir": str(tmp_path),
        "drop_rate": 0.3,
    }
    model = builder.from_backbone("timm/test_resnet", options=options).eval()
    model.save(tmp_path / "model.safetensors")
    file.unlink()
    loaded: Any = load(tmp_path / "model.safetensors").eval()
    x = images(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x)) and loaded.num_classes == 7
    assert loaded.drop_rate == 0.3


# -- threads ---------------------------------------------------------------------------------------


def test_models_are_described_and_built_in_threads_without_a_trace(tmp_path: Path) -> None:
    """Each thread gets what it would get alone; logger, seed and modes of torch stay."""
    members = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"]
    own = {name: made_up(name, tmp_path) for name in members}
    logger = logging.getLogger("timm")

    def settings() -> tuple[Any, ...]:
        return (
            logger.level,
            tuple(logger.filters),
            tuple(logger.handlers),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            timm.layers.is_scriptable(),
            timm.layers.is_exportable(),
            timm.layers.use_fused_attn(),
        )

    before = settings()
    describe.cache_clear()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for name in members:
        describe(name)
    assert torch.equal(torch.get_rng_state(), state)
    describe.cache_clear()

    def build(index: int) -> str:
        name = members[index % len(members)]
        network, options = own[name]
        patches = {"stage:*": {"wrap": "se"}}
        model = HybridBuilder().from_backbone(f"timm/{name}", patches=patches, options=options)
        x = images(network)
        with torch.no_grad():
            return "" if torch.equal(model.eval()(x), network(x)) else f"{name} is another"

    with ThreadPoolExecutor(4) as pool:
        assert [found for found in pool.map(build, range(8)) if found] == []
    assert settings() == before


# -- options ---------------------------------------------------------------------------------------


def test_options_are_timms(builder: HybridBuilder) -> None:
    given = {"in_chans": 5, "num_classes": 7, "drop_rate": 0.2, "drop_path_rate": 0.1}
    model: Any = builder.from_backbone("timm/test_convnext", None, options=given).eval()
    timms: Any = timm.create_model("test_convnext", **given).eval()
    timms.load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 96, 128)
    with torch.no_grad():
        assert torch.equal(model(x), timms(x)) and model.num_classes == 7
    rates = [
        [m.drop_prob for m in each.modules() if hasattr(m, "drop_prob")] for each in (model, timms)
    ]
    assert rates[0] == rates[1] and any(rates[0])


def test_channels_that_are_given_twice_have_to_agree(builder: HybridBuilder) -> None:
    arguments: Any = {"weights": None, "options": {"in_chans": 1}}
    with pytest.raises(ParameterError, match=r"in_channels is 4 and in_chans is 1: give one"):
        builder.from_backbone("timm/test_convnext", in_channels=4, **arguments)
    model = builder.from_backbone("timm/test_convnext", in_channels=1, **arguments)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "levit_128s"])
def test_no_classes_gives_timms_features(
    name: str, options: dict[str, Any], builder: HybridBuilder
) -> None:
    if name == "levit_128s" and "global_pool" in options:
        pytest.skip("timm's LeViT pools by a mean of its own")
    model: Any = builder.from_backbone(f"timm/{name}", None, options=options).eval()
    timms: Any = timm.create_model(name, **options).eval()
    timms.load_state_dict(model.state_dict())
    x = images(timms)
    with torch.no_grad():
        assert torch.equal(model(x), timms(x)) and model.num_classes == 0
    model.reset_classifier(3)
    assert model.num_classes == 3


@pytest.mark.parametrize("num_classes", [0, 5])
def test_pretrained_weights_and_another_number_of_classes(
    num_classes: int, tmp_path: Path, builder: HybridBuilder
) -> None:
    network, options = made_up("test_resnet", tmp_path)
    x = images(network)
    both = ({"num_classes": num_classes}, {"options": {**options, "num_classes": num_classes}})
    for given in ({**both[0], "options": options}, both[1]):
        model: Any = builder.from_backbone("timm/test_resnet", **given).eval()
        with torch.no_grad():
            wanted = network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator]
            assert (
                model(x).shape == (2, num_classes or wanted.shape[1])
                and model.num_classes == num_classes
            )
            assert num_classes or torch.equal(model(x), wanted)
            assert torch.equal(
                model.forward_head(model.forward_features(x), pre_logits=True), wanted
            )


def test_an_image_size_resizes_the_positions_as_timm_does(
    tmp_path: Path, builder: HybridBuilder
) -> None:
    network, options = made_up("vit_tiny_patch16_224", tmp_path)
    timms = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, img_size=96, **options
    ).eval()
    x = torch.randn(2, 3, 96, 96)
    for given in ({"image_size": 96, "options": options}, {"options": {**options, "img_size": 96}}):
        model: Any = builder.from_backbone("timm/vit_tiny_patch16_224", **given).eval()
        with torch.no_grad():
            assert torch.equal(model(x), timms(x))
        assert not torch.equal(model.pos_embed[:, :5], network.pos_embed[:, :5])  # type: ignore[index]


@pytest.mark.parametrize("options", [{"img_size": 64}, {"in_chanels": 1}, {"depth": 3}])
def test_an_option_that_the_model_does_not_take_is_an_error(
    options: dict[str, Any], builder: HybridBuilder
) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        builder.from_backbone("timm/resnet18", None, options=options)


def test_another_number_of_classes_gives_both_heads_of_a_distilled_model_a_new_layer(
    builder: HybridBuilder,
) -> None:
    model: Any = builder.from_backbone(
        "timm/deit_tiny_distilled_patch16_224", None, num_classes=4
    ).eval()
    assert (model.head.out_features, model.head_dist.out_features) == (4, 4)
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 4)


def test_both_heads_are_found_where_timms_configuration_names_one(builder: HybridBuilder) -> None:
    model: Any = builder.from_backbone("timm/levit_384_s8", None, num_classes=4).eval()
    assert (model.head.linear.out_features, model.head_dist.linear.out_features) == (4, 4)
    model.freeze_backbone(head="none")
    assert not any(p.requires_grad for p in model.head_dist.parameters())
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 4)


def test_a_network_that_assigns_forwards_itself_is_saved(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    model: Any = builder.from_backbone("timm/fasternet_t0", None, num_classes=4).eval()
    model.save(tmp_path / "m.safetensors")
    loaded: Any = load(tmp_path / "m.safetensors")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
    mixing = model.stages[0].blocks[0].spatial_mixing
    mixing.forward = lambda x: x  # timm's own forward was assigned as well
    with pytest.raises(WeightsError, match="spatial_mixing has a forward that was assigned to it"):
        model.save(tmp_path / "n.safetensors")


def test_a_last_layer_of_zeros_hides_no_wrong_way_to_the_head(builder: HybridBuilder) -> None:
    model: Any = builder.from_backbone("timm/mixer_s32_224", None).eval()
    assert not model.head.weight.any(), "timm starts it so"
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.forward_head(model.forward_features(x)), model(x))


# -- branches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "end"),
    [
        ("resnet10t", "layer2.0", "bn2"),
        ("seresnext26d_32x4d", "layer2.0", "se"),
        ("regnetx_002", "s2.b1", "conv3"),
        ("efficientnet_b0", "blocks.2.1", "bn3"),
        ("convnext_atto", "stages.1.blocks.0", "mlp"),
        ("vit_tiny_patch16_224", "blocks.3", "mlp"),
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0", "mlp"),
        ("mixer_s32_224", "blocks.3", "mlp_channels"),
    ],
)
def test_a_branch_patch_stands_at_the_end_of_the_branch(
    name: str, target: str, end: str, builder: HybridBuilder
) -> None:
    model: Any = builder.from_backbone(
        f"timm/{name}",
        weights=None,
        patches={target: {"wrap": {"type": "eca", "position": "branch"}}},
    )
    assert (
        model.patch_records[0].paths == (f"patches.{target}.{end}.eca",)
        and model.step0_difference == 0.0
    )


def test_every_known_block_is_a_class_of_timms() -> None:
    import importlib

    for path, ends in BRANCHES.items():
        module, _, name = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), nn.Module) and ends
