"""A recipe reaches nothing: what opens an address or a path is for code only, and the core holds it
for every plugin. An audit hook sees what Python opens.
"""

from __future__ import annotations

import dataclasses
import pickle
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.core.conftest import TINY, build_tiny
from tvc_core import (
    BlockSpec,
    HybridBuilder,
    HybridModel,
    PatchOpSpec,
    Recipe,
    RecipeError,
    load_yaml_recipe,
)
from tvc_core.testing.toy_networks import Gate

SEEN: list[str] | None = None
"""What was opened while somebody looks; None where nobody does."""


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if SEEN is None:
        return
    if event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.Request", "os.mkdir")):
        SEEN.append(event)
    elif event == "open":
        _, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & 3:
            SEEN.append(event)


sys.addaudithook(note)


@contextmanager
def watched() -> Iterator[list[str]]:
    global SEEN
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of a first import
    SEEN = seen = []
    try:
        yield seen
    finally:
        SEEN, sys.dont_write_bytecode = None, before


def reach(where: Any) -> None:
    """Do what an option with an address or a path makes a plugin do."""
    if isinstance(where, dict):
        for each in where.values():
            reach(each)
    elif isinstance(where, str) and where.startswith("http"):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.1).close()
    elif isinstance(where, str):
        Path(where).write_text("reached")


def build_reaching(
    spec: Any, *, weights: Any, num_classes: int = 7, cache_dir: Any = None, overlay: Any = None
) -> nn.Module:
    reach(cache_dir)
    reach(overlay)
    return build_tiny(spec, weights=weights, num_classes=num_classes)


class Logged(Gate):
    def __init__(self, in_channels: int, log_to: Any = None) -> None:
        super().__init__(in_channels)
        reach(log_to)


def traced(target: Any, block: Any, position: str = "after", trace_to: Any = None) -> nn.Module:
    reach(trace_to)
    target.after(block(target.out_channels))
    return target.module


SPECS = (
    dataclasses.replace(
        TINY,
        name="reaching",
        factory=build_reaching,
        options={"num_classes": 7, "cache_dir": None, "overlay": None},
        code_only=("cache_dir", "overlay"),
    ),
    BlockSpec(name="logged", factory=Logged, gated=True, code_only=("log_to",)),
    PatchOpSpec(
        name="traced",
        factory=traced,
        options={"position": "after", "trace_to": None},
        code_only=("trace_to",),
    ),
)


@pytest.fixture
def reaching(lab: Callable[..., HybridBuilder]) -> HybridBuilder:
    return lab(*SPECS)


def reaching_recipe(seed: int, folder: Path) -> dict[str, Any]:
    """Return a seeded recipe in its written form that would open an address or a path."""
    rng = random.Random(seed)
    where = str(folder / f"reached{seed}")
    address = "http://127.0.0.1:9/x"
    value = rng.choice([where, address, {"url": address}, {"file": where}])
    options: dict[str, Any] = {"num_classes": rng.choice([3, 7])}
    block: dict[str, Any] = {"type": rng.choice(["logged", "lab:logged", "gate"])}
    op = rng.choice(["wrap", "inject", "traced", "lab:traced"])
    place = rng.choice(["cache_dir", "overlay", "block", "op"])
    if place in ("cache_dir", "overlay"):
        options[place] = value
    elif place == "block":
        block |= {"type": "logged", "params": {"log_to": value}}
    else:
        op = "traced"
        block["trace_to"] = value
    patch: Any = {op: block}
    if rng.random() < 0.3:
        patch = [{"wrap": "gate"}, patch]
    target = rng.choice(["layer1", "layer3.1", "stage:*.-1", "layer*"])
    backbone = {
        "name": rng.choice(["reaching", "lab:reaching"]),
        "weights": None,
        "options": options,
        "patches": {target: patch},
    }
    return {"backbone": backbone, "freeze_backbone": rng.random() < 0.5}


def as_recipe(data: dict[str, Any]) -> Recipe:
    """Return a recipe as code makes it by hand."""
    backbone = dict(data["backbone"])
    return Recipe(
        backbone=backbone.pop("name"), **backbone, freeze_backbone=data["freeze_backbone"]
    )


def test_200_recipes_with_options_that_reach_out_open_nothing(
    reaching: HybridBuilder, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    file = tmp_path / "recipe.yaml"
    opened: list[str] = []
    for seed in range(200):
        data = reaching_recipe(seed, target)
        file.write_text(yaml.safe_dump(data))
        way: Callable[[], Any] = [
            lambda data=data: reaching.build(data),
            lambda data=data: reaching.build(Recipe.from_mapping(data)),
            lambda data=data: reaching.build(as_recipe(data)),
            lambda: reaching.build(file),
            lambda: load_yaml_recipe(file, reaching),
        ][seed % 5]
        with watched() as seen, pytest.raises(RecipeError, match="opens an address or a path"):
            way()
        opened += seen
    assert opened == [] and list(target.iterdir()) == []


def test_the_same_options_reach_out_by_code(reaching: HybridBuilder, tmp_path: Path) -> None:
    """The test above is worth nothing if the options do nothing, or the hook sees nothing."""
    patches: Any = {
        "layer1": {"wrap": {"type": "logged", "params": {"log_to": str(tmp_path / "block")}}},
        "layer2": {"traced": {"type": "gate", "trace_to": str(tmp_path / "op")}},
    }
    options = {"overlay": {"file": str(tmp_path / "network")}, "cache_dir": "http://127.0.0.1:9/"}
    with watched() as seen:
        reaching.from_backbone("reaching", None, patches=patches, options=options)
    assert {path.name for path in tmp_path.iterdir()} == {"block", "op", "network"}
    assert {event.partition(".")[0] for event in seen} == {"open", "socket"}


def test_a_model_that_code_built_is_written_down_without_them(
    reaching: HybridBuilder, tmp_path: Path
) -> None:
    patches: Any = {
        "layer*": {"traced": {"type": "logged", "params": {"log_to": None}, "trace_to": None}}
    }
    options = {"num_classes": 3, "cache_dir": str(tmp_path / "cache")}
    model = reaching.from_backbone("reaching", None, patches=patches, options=options)
    assert model.recipe.options == {"num_classes": 3}
    (patch,) = model.recipe.patches
    assert (patch.params, patch.options) == ({}, {})
    text = model.recipe.to_yaml()
    assert not any(name in text for name in ("cache_dir", "log_to", "trace_to", str(tmp_path)))
    (tmp_path / "cache").unlink()
    model.save(tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 32, 32)
    wanted = model.eval()(x)
    rebuilt: list[HybridModel] = [
        reaching.load(tmp_path / "model.safetensors"),
        pickle.loads(pickle.dumps(model)),
    ]
    for other in rebuilt:
        assert torch.equal(other.eval()(x), wanted)
        assert other.recipe.options == {"num_classes": 3}
        assert other.recipe.patches == model.recipe.patches
    assert reaching.build(model.recipe).recipe == model.recipe
    model.unpatch("layer2")
    assert [p.target for p in model.recipe.patches] == ["layer1", "layer3"]
    assert all((p.params, p.options) == ({}, {}) for p in model.recipe.patches)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_saved_file_that_was_edited_is_refused_as_well(
    reaching: HybridBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reaching.from_backbone("reaching", None)
    monkeypatch.setattr(Recipe, "to_mapping", lambda self: reaching_recipe(1, tmp_path))
    model.save(tmp_path / "edited.safetensors")  # with the hash of what stands in it
    monkeypatch.undo()
    with watched() as seen, pytest.raises(RecipeError, match="opens an address or a path"):
        reaching.load(tmp_path / "edited.safetensors")
    assert seen == []


@pytest.mark.parametrize(
    ("at", "text", "said"),
    [
        (
            "5:5: backbone.options.cache_dir",
            "  options:\n    cache_dir: /tmp/x\n",
            "'cache_dir' of lab:reaching opens",
        ),
        (
            "6:28: backbone.patches.layer1.traced.trace_to",
            "  patches:\n    layer1:\n      traced: {type: gate, trace_to: x}\n",
            "'trace_to' of lab:traced opens",
        ),
        (
            "9:11: backbone.patches.layer1.wrap.params.log_to",
            "  patches:\n    layer1:\n      wrap:\n        type: logged\n        params:\n"
            "          log_to: null\n",
            "'log_to' of lab:logged opens",
        ),
    ],
)
def test_the_error_names_file_line_and_what_to_do(
    reaching: HybridBuilder, tmp_path: Path, at: str, text: str, said: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"backbone:\n  name: reaching\n  weights: null\n{text}")
    with pytest.raises(RecipeError) as caught:
        reaching.build(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{at}: {said}")
    assert "Leave it out, or build in Python with HybridBuilder().from_backbone(...)" in message
