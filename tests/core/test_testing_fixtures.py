"""What authors of plugins test with: fake distributions, no discovery, and weights whose hash is
compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tvc_core import (
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    LocalPlugin,
    PluginError,
    Registry,
    WeightsError,
    read_state_dict,
)
from tvc_core.testing import cached_weights, fake_distributions, no_discovery, official_weights

from .conftest import run_pytest
from .defects.modules import HEALTHY


def test_a_fake_distribution_is_installed_inside_and_gone_afterwards(tmp_path: Path) -> None:
    paths = list(sys.path)
    with fake_distributions(tmp_path / "site") as install:
        install("acme-passing", HEALTHY, version="2.5")
        registry = Registry()
        assert registry.resolve(BlockSpec, "acme-passing:gate").owner == "acme-passing"
        assert {info.version for info in registry.plugins if info.owner == "acme-passing"} == {
            "2.5"
        }
        assert "acme_passing_plugin" in sys.modules
    assert sys.path == paths and "acme_passing_plugin" not in sys.modules
    assert "acme-passing" not in {info.owner for info in Registry().plugins}


def test_no_discovery_knows_what_is_handed_over_and_fails_loudly_for_the_rest() -> None:
    plugin = LocalPlugin("acme")
    plugin.block(name="gate")(nn.Identity)
    with no_discovery() as make:
        assert make(plugin).names(BlockSpec) == ["gate"]
        assert HybridBuilder(registry=make(plugin)).list_backbones() == []
        for ask in (Registry, HybridBuilder, HybridBuilder.list_blocks):
            with pytest.raises(PluginError, match="no_discovery refuses that"):
                ask()
    assert "se" in HybridBuilder.list_blocks()


def test_cached_weights_have_the_hash_that_their_name_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVC_VERIFY_WEIGHTS", "0")
    tensors = {"weight": torch.randn(3)}
    with cached_weights(tmp_path, tensors, "acme") as file:
        assert "TVC_VERIFY_WEIGHTS" not in os.environ
        assert file.path.parent == Path(torch.hub.get_dir()) / "checkpoints"
        assert file.url.rpartition("/")[2] == file.path.name == f"acme-{file.sha256[:8]}.pth"
        assert torch.equal(
            read_state_dict(file.path, sha256=file.sha256)["weight"], tensors["weight"]
        )
        file.path.write_bytes(file.path.read_bytes() + b" ")
        with pytest.raises(WeightsError, match=f"promises {file.sha256}"):
            read_state_dict(file.path, sha256=file.sha256)
    assert os.environ["TVC_VERIFY_WEIGHTS"] == "0" and "TORCH_HOME" not in os.environ


def test_a_plugins_own_url_is_served_from_the_cache(tmp_path: Path) -> None:
    from .defects.backbones import GOOD, Healthy

    url = ""
    plugin = LocalPlugin("acme")

    @plugin.backbone(
        stem="stem",
        stages=["layer1", "layer2"],
        head="fc",
        min_size=8,
        weights=[GOOD],
        default_weights="PHOTOS_V1",
    )
    def acme_net(spec: BackboneSpec, *, weights: object) -> nn.Module:
        network = Healthy()
        if weights is not None:
            path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
            network.load_state_dict(read_state_dict(path, sha256=path.stem.rpartition("-")[2]))
        return network

    tensors = Healthy().state_dict()
    with no_discovery() as make, cached_weights(tmp_path, tensors) as file:
        url = file.url
        model = HybridBuilder(registry=make(plugin)).from_backbone("acme_net")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert "not compared" not in model.explain()


def test_official_names_can_be_served_with_verification_on(tmp_path: Path) -> None:
    import torchvision

    member = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    before = member.url
    with official_weights(tmp_path, "squeezenet1_1", verify=True) as files:
        model = HybridBuilder().from_torchvision("squeezenet1_1")
        assert "not compared" not in model.explain()
        expected = torch.load(files["squeezenet1_1"], weights_only=True)
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items()
        )
        files["squeezenet1_1"].write_bytes(b"damaged")
        with pytest.raises(WeightsError, match="its SHA-256 starts with"):
            HybridBuilder().from_torchvision("squeezenet1_1")
    assert member.url == before


def test_the_fixtures_are_a_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['tvc_core.testing.fixtures']\n")
    (tmp_path / "test_acme.py").write_text(
        "import torch\nfrom tvc_core import BlockSpec, PluginError, Registry\n"
        f"SOURCE = '''{HEALTHY}'''\n\n"
        "def test_installed(fake_distribution):\n"
        "    fake_distribution('acme-fixture', SOURCE)\n"
        "    assert Registry().resolve(BlockSpec, 'acme-fixture:gate')\n\n"
        "def test_alone(registry_of):\n"
        "    assert registry_of().names(BlockSpec) == []\n\n"
        "def test_cached(cached_weights):\n"
        "    assert cached_weights({'a': torch.ones(1)}, 'acme').path.name.startswith('acme-')\n\n"
        "def test_official(official_weights):\n"
        "    assert official_weights('squeezenet1_1')['squeezenet1_1'].is_file()\n"
    )
    printed = run_pytest(tmp_path)
    assert "4 passed" in printed, printed
