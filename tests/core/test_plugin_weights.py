"""Weights that a plugin names by an address: downloaded once, compared each time, loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.core.conftest import TINY, Builder, Tiny, build_tiny
from tvc_core import (
    HybridBuilder,
    LocalPlugin,
    RecipeError,
    WeightsError,
    WeightsSpec,
    load,
    read_state_dict,
)
from tvc_core.testing import ConformanceError, checks_of

TENSORS = Tiny(num_classes=4).state_dict()


def build(spec: Any, *, weights: WeightsSpec | None, **options: Any) -> Tiny:
    network = build_tiny(spec, weights=None, **options)
    if weights is not None:
        network = Tiny(num_classes=weights.num_classes)
        network.load_state_dict(read_state_dict(weights))
    return network


class Site(BaseHTTPRequestHandler):
    """Answers with files by their paths, and notes what it was asked."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if content is not None and self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with `.files`, `.asked` and its `.address`; torch's cache is an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TVC_VERIFY_WEIGHTS", raising=False)
    handler = type("Handler", (Site,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        handler.address = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    torch.save(TENSORS, tmp_path / "draft.pt")
    return (tmp_path / "draft.pt").read_bytes()


def spec_of(url: str, content: bytes, **fields: Any) -> Any:
    sha256 = hashlib.sha256(content).hexdigest()
    weights = WeightsSpec(name="PHOTOS", num_classes=4, url=url, sha256=sha256, **fields)
    return dataclasses.replace(
        TINY, name="fetched", factory=build, weights=(weights,), default_weights="PHOTOS"
    )


def is_filled(model: Any) -> bool:
    return all(torch.equal(value, TENSORS[key]) for key, value in model.state_dict().items())


def test_a_file_is_downloaded_once_and_loaded(site: Any, content: bytes, lab: Builder) -> None:
    site.files["/v1/model.pt"] = content
    builder = lab(spec_of(f"{site.address}/v1/model.pt", content))
    assert is_filled(builder.from_backbone("fetched"))
    assert is_filled(builder.from_backbone("fetched")) and site.asked == ["/v1/model.pt"]
    assert "not compared" not in builder.from_backbone("fetched").explain()


def test_files_of_one_name_do_not_stand_for_each_other(
    site: Any, content: bytes, tmp_path: Path, lab: Builder
) -> None:
    other = {key: value + 1 for key, value in TENSORS.items()}
    torch.save(other, tmp_path / "other.pt")
    site.files["/a/model.pt"] = content
    site.files["/b/model.pt"] = (tmp_path / "other.pt").read_bytes()
    first, second = (
        spec_of(f"{site.address}{path}", site.files[path])
        for path in ("/a/model.pt", "/b/model.pt")
    )
    assert is_filled(lab(first).from_backbone("fetched"))
    found = lab(second).from_backbone("fetched").state_dict()
    assert torch.equal(found["fc.bias"], other["fc.bias"])


def test_a_file_beside_the_code_and_one_of_safetensors_are_taken(
    site: Any, tmp_path: Path, lab: Builder
) -> None:
    path = tmp_path / "my model.safetensors"
    save_file(TENSORS, path)
    model = lab(spec_of(path.as_uri(), path.read_bytes())).from_backbone("fetched")
    assert is_filled(model)


def test_another_file_at_the_address_is_refused_and_not_kept(
    site: Any, content: bytes, tmp_path: Path, lab: Builder
) -> None:
    site.files["/model.pt"] = content + b" "
    expected, found = (hashlib.sha256(each).hexdigest() for each in (content, content + b" "))
    text = f"not the file that was meant.*{expected}.*{found}.*weights=None"
    with pytest.raises(WeightsError, match=text):
        lab(spec_of(f"{site.address}/model.pt", content)).from_backbone("fetched")
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


def test_a_file_that_changed_in_the_cache_is_refused(
    site: Any, content: bytes, tmp_path: Path, lab: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/model.pt"] = content
    builder = lab(spec_of(f"{site.address}/model.pt", content))
    builder.from_backbone("fetched")
    (file,) = (path for path in (tmp_path / "torch").rglob("*") if path.is_file())
    file.write_bytes(content + b" ")
    expected, found = (hashlib.sha256(each).hexdigest() for each in (content, content + b" "))
    with pytest.raises(WeightsError, match=f"starts with {found}, its plugin promises {expected}"):
        builder.from_backbone("fetched")
    monkeypatch.setenv("TVC_VERIFY_WEIGHTS", "0")
    assert is_filled(builder.from_backbone("fetched"))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("{}/absent.pt", r"cannot be downloaded from 127\.0\.0\.1:\d+: HTTP Error 404"),
        ("http://127.0.0.1:9/model.pt", r"cannot be downloaded from 127\.0\.0\.1:9: .*refused"),
        ("file:///nowhere/model.pt", r"cannot be downloaded from file:///nowhere/model\.pt"),
        ("http://127.0.0.1:wrong/model.pt", "cannot be downloaded"),
    ],
)
def test_what_cannot_be_reached_says_what_to_do(
    site: Any, content: bytes, lab: Builder, url: str, text: str
) -> None:
    spec = spec_of(url.format(site.address), content)
    with pytest.raises(WeightsError, match=f"{text}.*weights=None"):
        lab(spec).from_backbone("fetched")


def test_a_saved_model_asks_for_nothing(
    site: Any, content: bytes, tmp_path: Path, lab: Builder
) -> None:
    site.files["/model.pt"] = content
    builder = lab(spec_of(f"{site.address}/model.pt", content))
    builder.from_backbone("fetched").save(tmp_path / "model.safetensors")
    site.files.clear()
    for path in (tmp_path / "torch").rglob("*.pt"):
        path.unlink()
    assert is_filled(load(tmp_path / "model.safetensors", registry=builder.registry))


@pytest.mark.parametrize("key", ["url", "sha256"])
def test_a_recipe_names_no_address(site: Any, content: bytes, lab: Builder, key: str) -> None:
    builder = lab(spec_of(f"{site.address}/model.pt", content))
    for weights in (f"{site.address}/model.pt", {key: f"{site.address}/model.pt"}):
        with pytest.raises((RecipeError, LookupError)):
            builder.build({"backbone": {"name": "fetched", "weights": weights}})
    with pytest.raises(RecipeError):
        builder.build({"backbone": {"name": "fetched", key: f"{site.address}/model.pt"}})
    assert site.asked == []


def test_a_set_without_an_address_says_so() -> None:
    with pytest.raises(WeightsError, match="'V1' has no url"):
        read_state_dict(WeightsSpec(name="V1"))


# -- names on the hub ------------------------------------------------------------------------------


@pytest.fixture
def hub(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, asked by huggingface_hub."""
    hub = pytest.importorskip("huggingface_hub")
    download = partial(hub.hf_hub_download, endpoint=site.address, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return site


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("hf://acme/nets/model.pt", "/acme/nets/resolve/main/model.pt"),
        ("hf://acme/nets@v1/small/model.pt", "/acme/nets/resolve/v1/small/model.pt"),
    ],
)
def test_a_name_on_the_hub_is_asked_of_its_own_client(
    hub: Any, content: bytes, lab: Builder, url: str, asked: str
) -> None:
    hub.files[asked] = content
    assert is_filled(lab(spec_of(url, content)).from_backbone("fetched"))
    assert asked in hub.asked
    with pytest.raises(WeightsError, match=r"its plugin promises [0-9a-f]{64}"):
        lab(spec_of(url, content + b" ")).from_backbone("fetched")
    with pytest.raises(WeightsError, match=r"hf://acme/nets/absent\.pt cannot be downloaded"):
        lab(spec_of("hf://acme/nets/absent.pt", content)).from_backbone("fetched")


def test_a_missing_client_of_the_hub_is_named(
    content: bytes, lab: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub, or pass weights=None"):
        lab(spec_of("hf://acme/nets/model.pt", content)).from_backbone("fetched")


# -- the conformance kit ---------------------------------------------------------------------------


def plugin_with(factory: Callable[..., Any], url: str, content: bytes) -> Any:
    plugin = LocalPlugin("acme")
    spec = spec_of(url, content, crop_size=16, resize_size=16)
    old = WeightsSpec(name="OLD", crop_size=16, resize_size=16, num_classes=7)
    plugin.add(
        dataclasses.replace(
            spec, factory=factory, weights=(old, *spec.weights), default_weights="OLD"
        )
    )
    return plugin


def run(plugin: Any, name: str) -> None:
    (check,) = [check for check in checks_of(plugin) if check.name == name]
    check()


def forgetful(spec: Any, *, weights: WeightsSpec | None, **options: Any) -> Tiny:
    if weights is not None and weights.name == "OLD":
        raise WeightsError("not here")
    return Tiny(num_classes=weights.num_classes if weights else 7)


def reading(spec: Any, *, weights: WeightsSpec | None, **options: Any) -> Tiny:
    return build(spec, weights=weights, **options)


def test_the_kit_looks_whether_each_address_is_read(content: bytes) -> None:
    address = "https://weights.invalid/model.pt"
    run(plugin_with(reading, address, content), "backbone_loads_weights")
    with pytest.raises(ConformanceError, match=r"the tensors of 'PHOTOS'.*random start"):
        run(plugin_with(forgetful, address, content), "backbone_loads_weights")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"acc1": 0.761}, "accuracy in percent.*acc1=0.761"),
        ({"test_crop_size": 32, "test_resize_size": 24}, "test crop that fits.*32 of 24"),
    ],
)
def test_the_kit_refuses_figures_that_cannot_be(fields: dict[str, Any], text: str) -> None:
    plugin = LocalPlugin("acme")
    weights = WeightsSpec(name="V1", crop_size=16, resize_size=16, **fields)
    plugin.add(dataclasses.replace(TINY, weights=(weights,), default_weights="V1"))
    with pytest.raises(ConformanceError, match=text):
        run(plugin, "backbone_weights")


def test_a_builder_finds_the_weights_of_an_installed_plugin(
    site: Any, content: bytes, fake_distribution: Callable[..., Path], tmp_path: Path
) -> None:
    site.files["/net.pt"] = content
    sha256 = hashlib.sha256(content).hexdigest()
    fake_distribution(
        "acme-nets",
        f"""
from tvc_core import BackboneSpec, WeightsSpec, hookimpl

TVC_API = (1, 1)


@hookimpl
def tvc_backbones():
    weights = WeightsSpec(
        name="PHOTOS", num_classes=4, url="{site.address}/net.pt", sha256="{sha256.upper()}"
    )
    return [
        BackboneSpec(
            name="fetched",
            factory="tests.core.test_plugin_weights:build",
            weights=(weights,),
            default_weights="PHOTOS",
            stem=("stem",),
            stages=("layer1", "layer2", "layer3"),
            head="fc",
            min_size=8,
        )
    ]
""",
    )
    assert is_filled(HybridBuilder().from_backbone("fetched"))
