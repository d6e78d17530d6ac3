"""Cached features: right, never stale, and nothing left of what was killed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import nn
from tvc_train.caching import storing
from tvc_train.caching.cutting import CutError, cut
from tvc_train.caching.feeding import CachedFeed
from tvc_train.caching.storing import FeatureStore
from tvc_train.data import DataSettings, Transforms, open_data
from tvc_train.devices import Devices
from tvc_train.errors import TrainingError
from tvc_train.faults import StoppedError, Stopping
from tvc_train.feeding import Feed
from tvc_train.fitting import preview
from tvc_train.phases import Phase

from tvc_core import HybridBuilder, HybridModel, Preprocessing


def network(kernel: int = 3, stride: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    def stage(a: int, b: int, step: int = 1) -> nn.Module:
        conv = nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(b), activation())

    body = [stage(3, 4, stride), stage(4, 8), stage(8, 8)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def hybrid(patches: dict[str, Any] | None = None, **options: Any) -> HybridModel:
    torch.manual_seed(0)
    return HybridBuilder().from_module(
        network(**options), stem="0", stages=["1", "2"], head="5", num_classes=2,
        freeze_backbone=True, patches=patches or {},
    )  # fmt: skip


@functools.cache
def devices_of(precision: str) -> Devices:
    return Devices(precision=precision, accelerator="cpu")


@dataclass
class Case:
    """What features are computed from, and where they are kept."""

    root: Path
    model: HybridModel = field(default_factory=hybrid)
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    phase: Phase = field(default_factory=lambda: Phase(epochs=1))
    stopping: Stopping = field(default_factory=Stopping)
    notes: list[str] = field(default_factory=list)

    @property
    def photos(self) -> Path:
        return self.root / "photos"

    def feed(self) -> CachedFeed:
        said = {"path": str(self.photos), "augment": "none", "cache": True, **self.settings}
        settings = DataSettings.from_mapping(said)
        data = open_data(settings, folder=Path(), seed=0)
        prepared = Preprocessing(
            size=(16, 16), resize=18, fit="crop", interpolation="bilinear", mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.2),
        )  # fmt: skip
        transforms = Transforms(
            replace(prepared, **self.prepared), settings.augment, mirror=settings.mirror
        )
        devices = devices_of(self.precision)
        self.model.to(devices.dtype)
        feed = CachedFeed(
            data, settings, transforms, devices=devices, folder=self.root / "cache",
            stopping=self.stopping, note=self.notes.append,
            **{"batch_size": 4, "seed": 0, **self.options},
        )  # fmt: skip
        feed.begin(self.model, self.phase)
        return feed

    def entries(self) -> set[str]:
        return {each.name for each in (self.root / "cache").glob("*") if each.is_dir()}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return Case(tmp_path)


# -- what comes out --------------------------------------------------------------------------------


def test_features_give_what_images_give(case: Case) -> None:
    case.options = {"batch_size": 3}
    feed = case.feed()
    plain = Feed(
        feed.data, feed.settings, feed.transforms, devices=feed.devices, batch_size=3, seed=0
    )
    for epoch in (0, 1):
        pairs = list(
            zip(feed.training_batches(epoch, 1), plain.training_batches(epoch, 1), strict=True)
        )
        assert len(pairs) == 2
        for cached, other in pairs:
            assert cached.indices.equal(other.indices) and cached.targets.equal(other.targets)
            assert cached.total == other.total and cached.images.shape[1:] == (8,)
            found = feed.runs(case.model)(feed.ready(cached.images))
            torch.testing.assert_close(found, case.model(other.images), rtol=1e-5, atol=1e-6)
    case.model.eval()
    for cached, other in zip(feed.evaluation_batches(), plain.evaluation_batches(), strict=True):
        found = feed.runs(case.model)(cached.images)
        torch.testing.assert_close(found, case.model(other.images), rtol=1e-5, atol=1e-6)


def test_views_are_those_of_the_first_epochs(case: Case) -> None:
    case.settings = {"augment": "standard", "views": 2}
    feed = case.feed()
    plain = Feed(
        feed.data, feed.settings, feed.transforms, devices=feed.devices, batch_size=8, seed=0
    )
    feed.batch_size = 8
    for epoch in (0, 1, 2):
        (cached,), (same,) = feed.training_batches(epoch, 0), plain.training_batches(epoch % 2, 0)
        order = cached.indices.argsort()
        found = feed.runs(case.model)(cached.images)[order]
        wanted = case.model(same.images)[same.indices.argsort()]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_whole_model(case: Case) -> None:
    case.model.freeze_backbone(unfreeze_stages=[-1])
    feed = case.feed()
    (first, *_), plain = feed.training_batches(0, 0), Feed(
        feed.data, feed.settings, feed.transforms, devices=feed.devices, batch_size=4, seed=0
    )  # fmt: skip
    same = next(iter(plain.training_batches(0, 0)))
    case.model.train()
    start = {name: t.clone() for name, t in case.model.named_buffers()}
    grads = []
    for run, images in ((feed.runs(case.model), first.images), (case.model, same.images)):
        case.model.load_state_dict(start, strict=False)
        loss = nn.functional.cross_entropy(run(images), same.targets)
        learning = [p for p in case.model.parameters() if p.requires_grad]
        grads.append(torch.autograd.grad(loss, learning))
    for cached, whole in zip(*grads, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
@pytest.mark.parametrize("thawed", [(), (-1,)])
def test_halves_of_real_networks_are_the_whole(name: str, thawed: tuple[int, ...]) -> None:
    model = HybridBuilder().from_backbone(name, None, num_classes=3, patches={})
    model.freeze_backbone(unfreeze_stages=list(thawed))
    model.train()
    images = torch.randn(2, 3, 64, 64)
    halves = cut(model, images, contextlib.nullcontext)
    below = {id(parameter) for parameter in halves.below.parameters()}
    assert below and not any(p.requires_grad for p in halves.below.parameters())
    assert model.training  # modes are as they were
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(below) > 0.5 * len(frozen)
    model.eval()
    with torch.no_grad():
        found, wanted = halves.above[False](halves.below(images)), model(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# -- what is refused -------------------------------------------------------------------------------


def test_where_it_would_be_wrong_it_is_refused_with_the_reason(case: Case) -> None:
    case.model.unfreeze_all()
    for name, parameter in case.model.named_parameters():  # which does not hold the statistics
        parameter.requires_grad = name.startswith("5.")
    with pytest.raises(TrainingError, match=r"0\.1 \(BatchNorm2d\) uses the statistics of each"):
        case.feed()
    case.model = hybrid()
    case.model.unfreeze_all()
    feed = case.feed()
    assert "caches nothing" in case.notes[-1] and "learns" in case.notes[-1]
    assert next(iter(feed.training_batches(0, 0))).images.shape[1:] == (3, 16, 16)
    assert feed.runs(case.model) is case.model


def test_what_a_later_phase_cannot_cache_is_refused_before_the_first(
    recipe: Callable[..., dict[str, Any]],
) -> None:
    given = recipe(phases=[{"epochs": 1, "thaw": "all"}, {"epochs": 1}])
    given["data"] |= {"cache": True, "augment": "none"}
    preview(given)
    with pytest.raises(TrainingError, match=r"data\.cache: a compiled model cannot be cut"):
        preview(given, changes={"training.compile": True})
    given["backbone"]["patches"] = {  # what comes before the second is drawn anew each time
        "features.10": {"wrap": "drop_block"}, "features.12": {"wrap": "eca"},
    }  # fmt: skip
    with pytest.raises(TrainingError, match=r"data\.cache: phase 'head': .*other features each"):
        preview(given)


class Noisy(nn.Module):
    """Draws random numbers by a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Mixing(nn.Module):
    """Lets each image of a batch see the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Counting(nn.Module):
    """Keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x


class Branching(nn.Module):
    """Decides by values, which no trace can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Dropout(0.1), "drops at random"),
        (nn.BatchNorm2d(4), "statistics of each batch"),
        (Noisy(), "random"),
        (Mixing(), "mixes the images"),
        (Counting(), "changes 1.seen"),
        (Branching(), "cannot be traced"),
        (nn.RReLU(), "random"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_step_that_is_not_settled_is_found(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), module, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)
    )
    for parameter in model[:3].parameters():
        parameter.requires_grad = False
    with pytest.raises(CutError, match=reason):
        cut(model, torch.randn(2, 3, 6, 6), contextlib.nullcontext)


class Unit(nn.Module):
    """Scales the channels of each pixel to a length of one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x)


def test_a_normalized_map_is_no_random_one() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), Unit(), nn.Conv2d(4, 4, 3), nn.Flatten())
    layers.requires_grad_(False)
    model = nn.Sequential(layers, nn.Linear(4 * 16, 2))
    assert cut(model, torch.randn(2, 3, 8, 8), contextlib.nullcontext).where == "0.3"


def test_more_than_may_be_kept_is_refused_and_old_entries_make_room(
    case: Case, tmp_path: Path
) -> None:
    case.settings = {"max_cache": 1e-9}
    with pytest.raises(TrainingError, match="max_cache"):
        case.feed()
    store = FeatureStore(tmp_path / "small", most=1300)
    rows = torch.arange(100.0).view(100, 1)
    for key in ("a", "b"):
        store.build(key, {}, [rows], (100, 1), torch.float32)
        os.utime(tmp_path / "small" / key, (1, 1 + ord(key)))
    assert store.find("a") is not None  # used later than b
    store.build("c", {}, [rows], (100, 1), torch.float32)
    assert store.find("b") is None
    assert store.find("a") is not None and store.find("c") is not None


# -- never stale -----------------------------------------------------------------------------------


def weight(name: str) -> Callable[[Case, Any], None]:
    def change(case: Case, patch: Any) -> None:
        tensor = case.model.state_dict()[name]
        tensor.view(-1)[-1] += 1

    return change


def model_of(*args: Any, **options: Any) -> Callable[[Case, Any], None]:
    def change(case: Case, patch: Any) -> None:
        old, case.model = case.model, hybrid(*args, **options)
        there = case.model.state_dict()
        kept = old.state_dict().items()
        fits = {k: v for k, v in kept if k in there and v.shape == there[k].shape}
        case.model.load_state_dict(fits, strict=False)

    return change


def said(**settings: Any) -> Callable[[Case, Any], None]:
    return lambda case, patch: case.settings.update(settings)


def prepared(**settings: Any) -> Callable[[Case, Any], None]:
    return lambda case, patch: case.prepared.update(settings)


def file(path: str, act: Callable[[Path], Any]) -> Callable[[Case, Any], None]:
    return lambda case, patch: act(case.photos / path)


def redrawn(path: Path) -> None:
    """Change one pixel, and leave size and times as they are."""
    before = path.stat()
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def version(name: str) -> Callable[[Case, Any], None]:
    def change(case: Case, patch: Any) -> None:
        real = metadata.version
        patch.setattr(metadata, "version", lambda each: "9.9" if each == name else real(each))

    return change


def thawed(case: Case, patch: Any) -> None:
    case.model.freeze_backbone(unfreeze_stages=[-1])


def hooked(case: Case, patch: Any) -> None:
    case.model.get_submodule("1.0").register_forward_hook(lambda module, args, out: out * 2)


def chosen(name: str, value: Any) -> Callable[[Case, Any], None]:
    return lambda case, patch: setattr(case, name, value)


def option(name: str, value: Any) -> Callable[[Case, Any], None]:
    return lambda case, patch: case.options.update({name: value})


CHANGES: dict[str, Callable[[Case, Any], None]] = {
    **{name: weight(name) for name in (
        "0.0.weight", "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var",
        "1.0.weight", "1.1.weight", "1.1.bias", "1.1.running_mean", "1.1.running_var",
        "2.0.weight", "2.1.weight", "2.1.bias", "2.1.running_mean", "2.1.running_var",
    )},
    "a block": model_of({"1": {"wrap": "se"}}),
    "another block": model_of({"2": {"wrap": "se"}}),
    "a kernel": model_of(kernel=5),
    "a stride": model_of(stride=1),
    "an activation": model_of(activation=nn.GELU),
    "another activation": model_of(activation=nn.ReLU6),
    "epsilon": lambda case, patch: setattr(case.model.get_submodule("1.1"), "eps", 1e-3),
    "padding": lambda case, patch: setattr(
        case.model.get_submodule("1.0"), "padding_mode", "circular"
    ),
    "a stage thawed": thawed,
    "a hook": hooked,
    "size": prepared(size=(18, 18)),
    "height": prepared(size=(16, 18)),
    "resize": prepared(resize=20),
    "pad": prepared(fit="pad"),
    "squash": prepared(fit="squash"),
    "interpolation": prepared(interpolation="bicubic"),
    "mean": prepared(mean=(0.5, 0.4, 0.31)),
    "std": prepared(std=(0.2, 0.2, 0.21)),
    "light": said(augment="light", views=1),
    "standard": said(augment="standard", views=1),
    "strong": said(augment="strong", views=1),
    "views": said(augment="light", views=2),
    "more views": said(augment="light", views=3),
    "not mirrored": said(augment="light", views=1, mirror=False),
    "a pixel": file("train/cat/1.png", redrawn),
    "a held-out pixel": file("val/dog/1.png", redrawn),
    "a file more": file("train/cat/1.png", lambda p: shutil.copy(p, p.with_name("9.png"))),
    "a file less": file("train/dog/3.png", Path.unlink),
    "another order": file("train/cat/1.png", lambda p: p.rename(p.with_name("9.png"))),
    "bits": chosen("precision", "bfloat16"),
    "more bits": chosen("precision", "float64"),
    "layout": option("layout", "channels_last"),
    **{f"version of {name}": version(name) for name in (
        "torch", "torchvision", "numpy", "pillow", "tvc-core", "tvc-train",
    )},
    "version of the decoder": lambda case, patch: patch.setattr(
        features, "version", lambda name: "9"
    ),
    "processor": lambda case, patch: patch.setattr(
        torch.backends.cpu, "get_cpu_capability", lambda: "none"
    ),
}  # fmt: skip

HARMLESS: dict[str, Callable[[Case, Any], None]] = {
    "nothing": lambda case, patch: None,
    "weights of the head": weight("5.weight"),
    "bias of the head": weight("5.bias"),
    "dropout of the head": lambda case, patch: case.model.reset_classifier(2, dropout=0.5),
    "classes of the head": lambda case, patch: case.model.reset_classifier(7),
    "batch size": option("batch_size", 3),
    "seed": option("seed", 5),
    "workers": option("workers", 1),
    "balance": said(balance="loss"),
    "draws": said(balance="sample"),
    "budget": said(max_bad=3),
    "check": said(check="headers"),
    "formats": said(formats=["png"]),
    "limit of pixels": said(max_pixels=10_000),
    "limit of the cache": said(max_cache=1.0),
    "times": file("train/cat/1.png", lambda p: os.utime(p, (1, 1))),
    "another name": file("train/cat/3.png", lambda p: p.rename(p.with_name("4.png"))),
    "another class": lambda case, patch: [
        (case.photos / part / "dog").rename(case.photos / part / "ewe") for part in ("train", "val")
    ],
    "another folder": lambda case, patch: (
        case.photos.rename(case.root / "moved") and case.photos.symlink_to("moved")
    ),
    "a note beside": file("train/cat/.DS_Store", lambda p: p.write_text("x")),
    "evaluation mode": lambda case, patch: case.model.eval(),
    "phase": chosen("phase", Phase(epochs=5, name="other", rate=0.5)),
}  # fmt: skip


def test_there_are_as_many_as_promised() -> None:
    assert len(CHANGES) >= 50 and len(HARMLESS) >= 20


def some_of(names: dict[str, Any]) -> list[Any]:
    """Return every fifth name for each run of the tests, and the others for sweeps."""
    marks = [[] if number % 5 == 0 else [pytest.mark.sweep] for number in range(len(names))]
    return [pytest.param(name, marks=mark) for name, mark in zip(names, marks, strict=True)]


@pytest.mark.parametrize("name", some_of(CHANGES))
def test_a_change_is_a_miss(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("views", "more views", "not mirrored"):
        case.settings = {"augment": "light", "views": 1}
    case.feed()
    before = case.entries()
    CHANGES[name](case, monkeypatch)
    case.feed()
    assert case.entries() - before, f"{name}: the features of before were used"


def test_the_seed_of_views_is_a_miss(case: Case) -> None:
    case.settings = {"augment": "light", "views": 1}
    case.feed()
    before = case.entries()
    case.options = {"seed": 1}
    case.feed()
    assert len(case.entries() - before) == 1  # what is held out is not augmented


@pytest.mark.parametrize("name", some_of(HARMLESS))
def test_a_harmless_change_is_a_hit(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.feed()
    before = case.entries()
    assert len(before) == 2
    HARMLESS[name](case, monkeypatch)
    case.feed()
    assert case.entries() == before


def test_weights_that_change_below_are_seen_while_it_trains(case: Case) -> None:
    feed = case.feed()
    kept = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.model.state_dict()["0.0.weight"].add_(1)
    with pytest.raises(TrainingError, match="have changed"):
        next(iter(feed.training_batches(0, 0)))
    assert next(iter(feed.evaluation_batches())).images.ndim == 4  # images, not features
    case.model.load_state_dict(kept)  # as averaged weights go in and out
    assert next(iter(feed.evaluation_batches())).images.ndim == 2


# -- nothing half ----------------------------------------------------------------------------------


def test_a_signal_ends_the_building_and_leaves_nothing(case: Case) -> None:
    case.stopping.asked = True
    with pytest.raises(StoppedError, match="None of them are kept"):
        case.feed()
    assert not case.entries()


def test_a_killed_build_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def parts() -> Iterator[torch.Tensor]:
            yield torch.zeros(5, 2)
            os.write(writing, b"half")
            time.sleep(60)

        FeatureStore(tmp_path, most=10**6).build("k", {}, parts(), (10, 2), torch.float32)
        os._exit(0)
    assert os.read(reading, 4) == b"half"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (reading, writing):
        os.close(end)
    store = FeatureStore(tmp_path, most=10**6)
    left = [each.name for each in tmp_path.glob(".building-*")]
    assert left and store.find("k") is None
    rows = torch.arange(20.0).view(10, 2)
    assert store.build("k", {}, [rows[:6], rows[6:]], (10, 2), torch.float32).equal(rows)
    assert not [*tmp_path.glob(".building-*")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_kept_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = torch.randn(7, 3, 2).to(dtype)
    store = FeatureStore(tmp_path, most=10**6)
    store.build("k", {}, [rows], (7, 3, 2), dtype)
    assert (found := store.find("k")) is not None and found.equal(rows) and found.dtype == dtype


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: (e / "features.bin").write_bytes((e / "features.bin").read_bytes()[:-1]),
        lambda e: (e / "features.bin").write_bytes(b"\1" + (e / "features.bin").read_bytes()[1:]),
        lambda e: (e / "features.bin").unlink(),
        lambda e: (e / "facts.json").write_text("{"),
        lambda e: (e / "facts.json").write_text(
            '{"shape": [-1], "dtype": "float32", "digest": ""}'
        ),
        lambda e: (e / "facts.json").write_text('{"shape": [9], "dtype": "load", "digest": ""}'),
        lambda e: (e / "facts.json").unlink(),
    ],
)
def test_a_damaged_entry_counts_as_none(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    store, rows = FeatureStore(tmp_path, most=10**6), torch.zeros(3, 2)
    store.build("k", {}, [rows], (3, 2), torch.float32)
    damage(tmp_path / "k")
    assert store.find("k") is None
    assert store.build("k", {}, [rows], (3, 2), torch.float32).equal(rows)


def test_a_look_removes_nothing_that_another_process_has_just_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = FeatureStore(tmp_path, most=10**6), torch.ones(3, 2)
    real = storing._read_facts

    def slow(file: Path) -> dict[str, Any] | None:
        """Look, and go on when another has written the same entry."""
        found = real(file)
        monkeypatch.setattr(storing, "_read_facts", real)
        store.build("k", {}, [rows], (3, 2), torch.float32)
        return found

    monkeypatch.setattr(storing, "_read_facts", slow)
    assert store.find("k") is None
    there = store.find("k")
    assert there is not None and there.equal(rows)


class OwnNorm(nn.BatchNorm2d):
    """A normalization of a library's own, which torch.fx goes into."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize as torch's does."""
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip


def test_a_librarys_normalization_above_the_cut_does_what_its_mode_says_then() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1).requires_grad_(False), OwnNorm(4), nn.Flatten())
    images = torch.randn(2, 3, 6, 6)
    halves = cut(model, images, contextlib.nullcontext)
    norm: Any = model[1]
    for mode, momentum in ((False, 0.1), (True, 0.5), (True, None)):
        norm.train(mode)
        norm.momentum = momentum
        norm.reset_running_stats()
        wanted = model(images), norm.running_mean.clone()
        for above in halves.above.values():  # that of evaluation as well, which a gap is found with
            norm.reset_running_stats()
            assert above(halves.below(images)).equal(wanted[0])
            assert norm.running_mean.equal(wanted[1]), (mode, momentum)
