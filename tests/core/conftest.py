"""A laboratory for the core's tests: a small network and small blocks, in a registry that knows
nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BackboneSpec, BlockSpec, HybridBuilder, HybridModel, LocalPlugin, Registry
from tvc_core.registry import discovery
from tvc_core.specs import Spec
from tvc_core.testing.distributions import forget_modules
from tvc_core.testing.toy_networks import Gate


def run_pytest(folder: Path, *options: str) -> str:
    """Run the tests of a folder in this process, which has torch already, and return what pytest
    prints.
    """
    without = [
        word for name in ("xdist", "timeout", "faulthandler") for word in ("-p", f"no:{name}")
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        pytest.main(
            [
                *("-q", "-s", "--import-mode=importlib", "-p", "no:cacheprovider", *without),
                *(f"--rootdir={folder}", *options, str(folder)),
            ]
        )
    forget_modules(folder)  # or the next folder's test_acme is this one's
    return printed.getvalue()


def plugin_of(*specs: Spec) -> LocalPlugin:
    """Return an in-process plugin that offers these."""
    plugin = LocalPlugin("lab")
    plugin.add(*specs)
    return plugin


class Stage(nn.Sequential):
    """conv, norm, relu, dropout: everything that freezing has to hold still."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)


class Tiny(nn.Module):
    """stem, three stages, pool, fc."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        self.stem = Stage(3, 8)
        self.layer1 = Stage(8, 8, stride=1)
        self.layer2 = Stage(8, 16)
        self.layer3 = nn.Sequential(Stage(16, 16, stride=1), Stage(16, 32))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ConvNorm(nn.Module):
    """A block without a gate, with `channels` as its output width and running statistics."""

    def __init__(
        self, in_channels: int, channels: int | None = None, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels or in_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def build_tiny(spec: BackboneSpec, *, weights: Any, **options: Any) -> Tiny:
    """Make the small network, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Tiny(**options)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    return network


TINY = BackboneSpec(
    name="tiny",
    factory=build_tiny,
    stem=("stem",),
    stages=("layer1", "layer2", "layer3"),
    head="fc",
    options={"num_classes": 7},
    min_size=8,
)
BLOCKS = (
    BlockSpec(name="gate", factory=Gate, gated=True, category="attention"),
    BlockSpec(name="conv", factory=ConvNorm, preserves_shape=False),
)

Builder = Callable[..., HybridBuilder]
TinyBuilder = Callable[..., HybridModel]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On small networks several threads cost far more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lab() -> Builder:
    """Return a function that makes a builder which knows the core, tiny, gate, conv, and what it is
    given.
    """
    return lambda *specs: HybridBuilder(
        registry=Registry([plugin_of(TINY, *BLOCKS, *specs)], installed=False)
    )


@pytest.fixture
def tiny(lab: Builder) -> TinyBuilder:
    """Return a function that builds the small network: `tiny(patches, *more_specs,
    **arguments)`.
    """

    def build(patches: dict[str, Any] | None = None, *specs: Spec, **arguments: Any) -> HybridModel:
        return lab(*specs).from_backbone("tiny", weights=None, patches=patches, **arguments)

    return build


@pytest.fixture
def plain() -> Callable[[], nn.Module]:
    """Return a function that makes the small network itself, as a plain torch module."""
    return lambda: build_tiny(TINY, weights=None)


@pytest.fixture
def images() -> Tensor:
    """Four images [N, C, H, W] for the small network."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def install(
    fake_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that installs a distribution; what else is installed on the machine is out
    of sight.
    """
    find = discovery._distributions
    folders: list[str] = []
    monkeypatch.setattr(discovery, "_distributions", lambda _, group: find(folders, group))
    monkeypatch.setattr(discovery, "_MENTIONED", set())
    for variable in ("TVC_DISABLE", "TVC_ONLY", "TVC_STRICT"):
        monkeypatch.delenv(variable, raising=False)

    def write(name: str, source: str, **more: str) -> Path:
        info = fake_distribution(name, source, **more)
        folders[:] = [str(info.parent)]
        importlib.invalidate_caches()
        return info

    return write
