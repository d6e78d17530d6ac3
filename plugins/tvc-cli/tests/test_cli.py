"""The command line: what it prints where, its exit codes, and that listing stays light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvc_cli.commands
from click.testing import CliRunner, Result
from tvc_cli.output import print_table

from tvc_core.testing import write_distribution

NETS = '''
"""A small network that offers every case: a module that repeats, a tuple, one that never runs."""
import tvc_core
from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, WeightsSpec, hookimpl

TVC_API = (1, 0)

def build(spec, *, weights, width=4):
    import warnings
    import torch
    from torch import nn

    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(width, 6, 3, stride=2, padding=1)
            self.act = nn.ReLU()
            self.split = Split()
            self.spare = nn.ReLU()
            self.echo = nn.Identity()

        def forward(self, x):
            self.echo(x), self.echo(x[..., ::2, ::2])
            return self.split(self.act(self.conv(self.act(x))))[0]

    class Split(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
            self.layer = Doubling()
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.layer(self.stem(x)).mean((2, 3)))

    print("the plugin prints this while it builds")
    warnings.warn("the plugin warns while it builds", UserWarning, stacklevel=2)
    network = Net()
    if spec.name == "net10":
        network.stem.weight.data.sum().item()  # cannot be done without memory for the weights
    return network

def gate(in_channels, reduction, kernel_size: int = 3) -> "nn.Module":
    """Scale channels.

    Args:
        in_channels: measured.
        reduction (int or str, optional): how much narrower the inside is,
            at least 1. It is the paper's r.
        kernel_size: of the mixing [pixels].
    """
    from torch import nn
    return nn.Identity()

def fill(module):
    pass

def _net(name, origin):
    return BackboneSpec(
        name=name, family="acme", origin=origin, summary="A network.",
        factory="acme_nets_plugin:build", stem=("stem",),
        stages=("layer",), head="head", options={"width": 4}, default_weights="NEW",
        weights=(WeightsSpec(name="OLD", crop_size=64), WeightsSpec(name="NEW", crop_size=32)),
    )

@hookimpl
def tvc_backbones():
    return [_net("net10", "acme"), _net("net9", "acme"), _net("other", "elsewhere")]

@hookimpl
def tvc_blocks():
    home = "acme_nets_plugin:gate"
    return [
        BlockSpec(name="gate", category="attention", factory=home, source="Acme 2020"),
        BlockSpec(name="plain", category="convolution", factory=home),
        BlockSpec(name="shared", category="convolution", factory=home),
    ]

@hookimpl
def tvc_initializers():
    return [InitializerSpec(name="shared", factory="acme_nets_plugin:fill")]
'''

BROKEN = "raise ImportError('no module named acme_engine')"


@pytest.fixture
def install(
    fake_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Return a function that installs a distribution for this test, where only such distributions
    are seen.
    """
    for variable in ("TVC_DISABLE", "TVC_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    owners: list[str] = []

    def write(name: str, source: str) -> None:
        fake_distribution(name, source)
        owners.append(name)
        monkeypatch.setenv("TVC_ONLY", ",".join(owners))

    return write


@pytest.fixture
def nets(install: Callable[[str, str], None]) -> None:
    install("acme-nets", NETS)


def tvc(*args: object) -> Result:
    return CliRunner().invoke(tvc_cli.commands.tvc, [str(arg) for arg in args], prog_name="tvc")


def fine(*args: object) -> Result:
    result = tvc(*args)
    assert result.exit_code == 0, result.output
    return result


def data(*args: object) -> Any:
    return json.loads(fine(*args, "--json").stdout)


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# -- list ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((), ["net9", "net10", "other"]),
        (("backbones", "net*"), ["net9", "net10"]),
        (("--origin", "elsewhere"), ["other"]),
        (("--owner", "Acme_Nets"), ["net9", "net10", "other"]),
        (("--owner", "tvc-core"), []),
        (("blocks",), ["gate", "plain", "shared"]),
        (("blocks", "--category", "convolution"), ["plain", "shared"]),
        (("blocks", "--owner", "tvc-core"), []),
        (("ops",), ["inject", "replace", "wrap"]),
        (("ops", "w*"), ["wrap"]),
        (("operation", "w*"), ["wrap"]),
        (("patch-operations",), ["inject", "replace", "wrap"]),
        (("initializers", "--owner", "acme-nets"), ["shared"]),
    ],
)
@pytest.mark.usefixtures("nets")
def test_list_shows_what_was_asked_for_naturally_sorted(
    args: tuple[str, ...], names: list[str]
) -> None:
    assert [fact["name"] for fact in data("list", *args)] == names
    assert [line.split()[0] for line in fine("list", *args).stdout.splitlines()[1:]] == names


@pytest.mark.usefixtures("nets")
def test_list_says_on_stderr_that_nothing_matches() -> None:
    result = fine("list", "backbones", "vgg*")
    assert result.stdout == ""
    assert "no backbones match 'vgg*'" in result.stderr


def test_a_name_with_two_owners_is_listed_qualified(install: Callable[[str, str], None]) -> None:
    install("acme-nets", NETS)
    install("zeta-nets", NETS)
    facts = data("list", "backbones", "*net9")
    assert [fact["name"] for fact in facts] == ["acme-nets:net9", "zeta-nets:net9"]
    assert [fact["plugin"] for fact in facts] == ["acme-nets", "zeta-nets"]


def test_list_mentions_plugins_that_cannot_be_used_once(
    install: Callable[[str, str], None],
) -> None:
    install("acme-nets", NETS)
    install("bad-nets", BROKEN)
    result = fine("list", "--json")
    assert [fact["name"] for fact in json.loads(result.stdout)] == ["net9", "net10", "other"]
    assert result.stderr.count("bad-nets") == 1 and "failed" in result.stderr


FAMILY = """
from tvc_core import BackboneFamilySpec, BackboneSpec, hookimpl

TVC_API = (1, 0)

def members():
    return ["net-s", "net-l", "other"]

def describe(member):
    raise AssertionError("nothing is described for a listing")

@hookimpl
def tvc_backbones():
    home = "zoo_nets_plugin"
    describe, members = f"{home}:describe", f"{home}:members"
    family = BackboneFamilySpec(name="zoo", origin="zoo", factory=describe, members=members)
    lone = {"name": "lone", "factory": f"{home}:build", "stem": ("a",), "stages": ("b",),
            "head": "c"}
    return [family, BackboneSpec(**lone)]
"""


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((), ["lone"]),
        (("backbones", "*"), ["lone"]),
        (("backbones", "zoo/*"), ["zoo/net-l", "zoo/net-s", "zoo/other"]),
        (("backbones", "--owner", "zoo-nets", "net*"), ["zoo/net-l", "zoo/net-s"]),
        (("backbones", "--origin", "zoo"), ["zoo/net-l", "zoo/net-s", "zoo/other"]),
    ],
)
def test_members_of_a_family_are_listed_where_they_are_asked_for(
    install: Callable[[str, str], None], args: tuple[str, ...], names: list[str]
) -> None:
    install("zoo-nets", FAMILY)
    assert [fact["name"] for fact in data("list", *args)] == names
    more = (
        "the family zoo of zoo-nets has more, which are not listed here: tvc list backbones 'zoo/*'"
    )
    assert (more in fine("list", *args).stderr.splitlines()) is (names == ["lone"])
    assert [(fact["plugin"], fact["families"]) for fact in data("plugins") if fact["families"]] == [
        ("zoo-nets", 1)
    ]


# -- choosing --------------------------------------------------------------------------------------

FIGURES = """
from tvc_core import BackboneSpec, WeightsSpec, hookimpl

TVC_API = (1, 1)

def _net(name, *weights):
    return BackboneSpec(
        name=name, factory="acme_nets_plugin:build", stem=("stem",), stages=("layer",), head="head",
        weights=weights, default_weights=weights[-1].name if weights else None,
    )

@hookimpl
def tvc_backbones():
    return [
        _net("a9", WeightsSpec(name="V1", num_params=9_000_000, gflops=0.2, acc1=71.5)),
        _net("a10", WeightsSpec(name="V1", num_params=2_000_000, gflops=0.9, acc1=60.0),
             WeightsSpec(name="V2", num_params=2_100_000, gflops=0.9, acc1=80.25,
                         license="CC-BY-NC-4.0", test_crop_size=288)),
        _net("bare"),
        _net("silent", WeightsSpec(name="V1", license="MIT", squash=True)),
    ]
"""


def rows(*args: object) -> list[tuple[str, str | None]]:
    return [(fact["name"], fact["shown_weights"]) for fact in data("list", *args)]


def test_list_sorts_by_what_the_default_weights_are_said_to_be(
    install: Callable[[str, str], None],
) -> None:
    install("zeta-figures", FIGURES)
    unknown = ["bare", "silent"]
    for sort, names in {
        "name": ["a9", "a10", *unknown],
        "params": ["a10", "a9", *unknown],
        "gflops": ["a9", "a10", *unknown],
        "acc": ["a10", "a9", *unknown],
    }.items():
        assert [name for name, _ in rows("--sort", sort)] == names
        lines = fine("list", "--sort", sort).stdout.splitlines()
        assert [line.split()[0] for line in lines[1:]] == names
    header, _, second, *rest = fine("list").stdout.splitlines()
    assert header.split()[:4] == ["name", "params", "GFLOPs", "acc@1"]
    assert second.split()[:4] == ["a10", "2.1M", "0.90", "80.25"]
    assert rest[0].split()[1:4] == ["-", "-", "-"]
    assert [name for name, _ in rows("backbones", "a*", "--sort", "params")] == ["a10", "a9"]
    for pattern, said in {
        "*": "--sort acc: 2 of 4 state no acc@1, so they stand last, by name",
        "bare": "--sort acc: 1 of 1 state no acc@1",
        "a*": "",
    }.items():
        stderr = fine("list", "backbones", pattern, "--sort", "acc").stderr
        assert said in stderr and ("--sort" in stderr) == bool(said)


def test_few_parameters_are_counted_in_thousands(install: Callable[[str, str], None]) -> None:
    install("zeta-figures", FIGURES.replace("9_000_000", "12_345").replace("2_000_000", "640"))
    assert fine("list", "backbones", "a9").stdout.splitlines()[1].split()[1] == "12.3K"
    lines = fine("list", "backbones", "a10", "--weights").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["0.6K", "2.1M"]


def test_list_has_a_line_for_each_set_of_weights(install: Callable[[str, str], None]) -> None:
    install("zeta-figures", FIGURES)
    every = [("a9", "V1"), ("a10", "V1"), ("a10", "V2"), ("bare", None), ("silent", "V1")]
    assert rows("--weights") == every
    by_accuracy = [("a10", "V2"), ("a9", "V1"), ("a10", "V1"), ("bare", None), ("silent", "V1")]
    assert rows("--weights", "--sort", "acc") == by_accuracy
    fact = data("list", "--weights", "backbones", "a10")[0]
    assert (fact["num_params"], fact["acc1"], fact["license"]) == (2_000_000, 60.0, None)
    assert [each["acc1"] for each in fact["weights"]] == [60.0, 80.25]


def test_show_gives_weights_without_building_the_network(
    install: Callable[[str, str], None],
) -> None:
    install("zeta-figures", FIGURES)  # whose factory does not exist
    lines = fine("show", "a10", "--weights").stdout.splitlines()
    first, last = lines[-2].split(), lines[-1].split()
    assert first[:7] == ["V1", "1000", "2.0M", "0.90", "60.00", "not", "stated"]
    assert last[:6] == ["V2", "1000", "2.1M", "0.90", "80.25", "CC-BY-NC-4.0"]
    assert "default, not for commercial use, evaluated at 288 pixels" in lines[-1]
    silent = fine("show", "silent", "--weights").stdout
    assert "commercial" not in silent and "resized without keeping the proportions" in silent
    squashed = [
        data("show", name, "--weights")["weights"][0]["squash"] for name in ("silent", "a9")
    ]
    assert squashed == [True, False]
    assert data("show", "a10", "--weights")["weights"][1]["license"] == "CC-BY-NC-4.0"
    assert "paths" not in data("show", "a10", "--weights")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("list", "blocks", "--sort", "acc"), "--sort is for backbones; blocks have none"),
        (("list", "ops", "--weights"), "--weights is for backbones; ops have none"),
        (("list", "--sort", "size"), "'size' is not one of"),
        (("show", "gate", "--weights"), "--weights are for backbones; 'gate' is a block"),
        (("show", "net9", "--weights", "--depth", "1"), "--weights leaves out the paths"),
    ],
)
@pytest.mark.usefixtures("nets")
def test_what_cannot_be_chosen_is_wrong_usage(args: tuple[str, ...], text: str) -> None:
    result = tvc(*args)
    assert result.exit_code == 2 and text in result.stderr


def test_choosing_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from tvc_cli.commands import tvc\n"
        "for args in (['list', '--sort', 'acc'], ['list', '--weights', '--json'],"
        " ['show', 'vit_b_16', '--weights']):\n"
        "    result = CliRunner().invoke(tvc, args)\n"
        "    assert result.exit_code == 0 and 'vit_b_16' in result.stdout, result.output\n"
        "    assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- show ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net9", "net10"])  # net10 cannot be built on torch's meta device
@pytest.mark.usefixtures("nets")
def test_show_measures_every_module_of_a_backbone(name: str) -> None:
    found = data("show", name)
    paths = {path["path"]: path for path in found["paths"]}
    # by hand, for the crop of the default weights, 32: each of the two convolutions halves the side
    assert found["image"] == [32, 32]
    keys = ("type", "part", "in_channels", "out_channels", "height", "width", "layout", "problem")
    assert {
        path: tuple(info[key] for key in keys)
        for path, info in paths.items()
        if info["problem"] is None
    } == {
        "stem": ("Conv2d", "stem", 3, 4, 16, 16, "NCHW", None),
        "layer": ("Doubling", "stage 0", 4, 6, 8, 8, "NCHW", None),
        "layer.conv": ("Conv2d", "stage 0", 4, 6, 8, 8, "NCHW", None),
        # runs at 16x16 and at 8x8
        "layer.echo": ("Identity", "stage 0", 4, 4, None, None, "NCHW", None),
        "head": ("Linear", "head", 6, 5, None, None, "NC", None),
    }
    assert {
        path: info["problem"] for path, info in paths.items() if info["problem"] is not None
    } == {
        "layer.act": "runs 2 times with different outputs: 4x16x16, 6x8x8",
        "layer.split": "returns a tuple, not a tensor",
        "layer.spare": "never called",
    }
    assert list(paths) == [
        "stem",
        "layer",
        "layer.conv",
        "layer.act",
        "layer.split",
        "layer.spare",
        "layer.echo",
        "head",
    ]


@pytest.mark.usefixtures("nets")
def test_show_leaves_the_random_state_alone() -> None:
    import torch

    before = torch.get_rng_state()
    fine("show", "net9")
    fine("show", "net10")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("nets")
def test_show_takes_another_size_and_a_depth() -> None:
    found = data("show", "net9", "--size", "48", "--depth", "1")
    assert found["image"] == [48, 48]
    assert {path["path"]: path["height"] for path in found["paths"]} == {
        "stem": 24,
        "layer": 12,
        "head": None,
    }


@pytest.mark.parametrize("name", ["net9", "net10"])
@pytest.mark.usefixtures("nets")
def test_show_lists_what_a_target_means(name: str) -> None:
    every = {path["path"]: path for path in data("show", name)["paths"]}
    found = data("show", name, "--target", "layer.[ce]*")
    assert found["paths"] == [every["layer.conv"], every["layer.echo"]] and found["image"] == [
        32,
        32,
    ]
    # its one block
    assert [path["path"] for path in data("show", name, "--target", "stage:*.-1")["paths"]] == [
        "layer"
    ]
    assert [path["path"] for path in data("show", name, "--target", "type:ReLU")["paths"]] == [
        "layer.act",
        "layer.spare",
    ]
    assert [path["path"] for path in data("show", name, "--target", "layer.act")["paths"]] == [
        "layer.act"
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [("layer.con", "is not a module of net9"), ("type:Relu", "Did you mean 'ReLU'?")],
)
@pytest.mark.usefixtures("nets")
def test_show_says_that_a_target_means_nothing(target: str, said: str) -> None:
    result = tvc("show", "net9", "--target", target)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: Target not found: '{target}'" in result.stderr and said in result.stderr


@pytest.mark.usefixtures("nets")
def test_show_prints_a_backbone_for_people() -> None:
    lines = [line.split() for line in fine("show", "net9").stdout.splitlines()]
    assert ["backbone", "acme-nets:net9"] in lines
    assert ["stage", "0", "layer"] in lines
    assert ["options", "width=4"] in lines
    assert [line[-1] for line in lines if line[:1] in (["OLD"], ["NEW"])] == ["0.225", "default"]
    assert ["layer", "Doubling", "stage", "0", "4", "6", "8x8", "NCHW"] in lines
    assert ["layer.spare", "ReLU", "stage", "0", "-", "-", "-", "-", "never", "called"] in lines


@pytest.mark.usefixtures("nets")
def test_show_gives_the_parameters_of_a_block() -> None:
    found = data("show", "gate")
    assert (found["kind"], found["qualified"], found["source"]) == (
        "block",
        "acme-nets:gate",
        "Acme 2020",
    )
    assert found["parameters"] == [
        {
            "name": "reduction",
            "type": None,
            "default": None,
            "required": True,
            "summary": "how much narrower the inside is, at least 1.",
        },
        {
            "name": "kernel_size",
            "type": "int",
            "default": 3,
            "required": False,
            "summary": "of the mixing [pixels].",
        },
    ]
    lines = [line.split() for line in fine("show", "gate").stdout.splitlines()]
    assert ["reduction", "-", "must", "be", "given"] in [line[:5] for line in lines]
    assert ["kernel_size", "int", "3", "of", "the", "mixing", "[pixels]."] in lines


@pytest.mark.usefixtures("nets")
def test_show_gives_the_options_of_an_op() -> None:
    found = data("show", "tvc-core:inject")
    assert found["takes_block"] is True
    (position,) = found["parameters"]
    assert position["summary"].startswith('"after" (original -> block), "before"')
    assert position["name"] == "position" and "'after', 'before'" in position["type"]


@pytest.mark.usefixtures("nets")
def test_a_name_of_two_kinds_needs_the_kind() -> None:
    result = tvc("show", "shared")
    assert result.exit_code == 1
    assert "--kind blocks or --kind initializers" in result.stderr
    assert data("show", "shared", "--kind", "initializers")["kind"] == "initializer"
    assert data("show", "shared", "--kind", "blocks")["kind"] == "block"


@pytest.mark.parametrize(
    ("given", "kind", "near"),
    [
        ("nett9", "backbone", "net9"),
        ("gat", "block", "gate"),
        ("wrapp", "patch op", "wrap"),
        ("kaimin", "initializer", "kaiming"),
    ],
)
@pytest.mark.usefixtures("nets")
def test_an_unknown_name_gets_the_error_of_the_kind_with_a_near_name(
    given: str, kind: str, near: str
) -> None:
    result = tvc("show", given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: Unknown {kind} {given!r}. Did you mean {near!r}")


@pytest.mark.usefixtures("nets")
def test_an_unknown_name_near_nothing_is_of_no_kind() -> None:
    assert "backbone, block, patch op or initializer" in tvc("show", "qqqqqqqqqq").stderr


def test_show_has_the_numbers_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvc_resnet")
    monkeypatch.setenv("TVC_ONLY", "tvc-resnet")
    paths = {path["path"]: path for path in data("show", "resnet50")["paths"]}
    found = {
        name: (paths[name]["out_channels"], paths[name]["height"])
        for name in ("conv1", "layer1", "layer2", "layer3", "layer4")
    }
    # He et al. 2016, table 1, column "50-layer"
    assert found == {
        "conv1": (64, 112),
        "layer1": (256, 56),
        "layer2": (512, 28),
        "layer3": (1024, 14),
        "layer4": (2048, 7),
    }


# -- build -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the plugin warns")
@pytest.mark.usefixtures("nets")
def test_build_explains_and_saves_what_load_reads_back(tmp_path: Path) -> None:
    from tvc_core import load

    recipe = write_recipe(
        tmp_path, "backbone: {name: net9, weights: null}\nhead: {num_classes: 7}\n"
    )
    out = tmp_path / "model.safetensors"
    result = fine("build", recipe, "--out", out)
    assert "acme-nets:net9" in result.stdout
    assert str(out) in result.stdout.splitlines()[-1]
    assert load(out).num_classes == 7


@pytest.mark.usefixtures("nets")
def test_json_stays_json_whatever_a_plugin_prints_and_warns(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, "backbone: {name: net9, weights: null}\nfreeze_backbone: true\n"
    )
    result = fine("build", recipe, "--json")
    found = json.loads(result.stdout)
    # by hand: 3*4*9 + 4 in the stem, 4*6*9 + 6 in the stage, 6*5 + 5 in the head, which alone is
    # trainable
    assert (found["parameters"], found["trainable_parameters"]) == (112 + 222 + 35, 35)
    assert (found["recipe"]["backbone"]["name"], found["num_classes"], found["out"]) == (
        "acme-nets:net9",
        5,
        None,
    )
    assert "the plugin prints this" in result.stderr
    assert "warning: the plugin warns while it builds\n" in result.stderr


@pytest.mark.usefixtures("nets")
def test_build_refuses_a_bad_out_before_it_builds(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "backbone: {name: net9, weights: null}\n")
    for out in (tmp_path / "model.pt", tmp_path / "nowhere" / "model.safetensors"):
        result = tvc("build", recipe, "--out", out)
        assert result.exit_code == 1
        assert "the plugin prints this" not in result.stderr
        assert not out.exists()


@pytest.mark.filterwarnings("ignore:the plugin warns")
@pytest.mark.usefixtures("nets")
def test_build_overwrites_a_file_only_by_force(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "backbone: {name: net9, weights: null}\n")
    out = tmp_path / "best.safetensors"
    out.write_bytes(b"trained")
    result = tvc("build", recipe, "--out", out)
    assert result.exit_code == 1 and "exists: --force" in result.stderr
    assert "the plugin prints this" not in result.stderr and out.read_bytes() == b"trained"
    fine("build", recipe, "--out", out, "--force")
    assert out.stat().st_size > 1000


@pytest.mark.usefixtures("nets")
def test_a_fault_in_a_recipe_is_shown_with_its_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "backbone:\n  name: net9\n  weigths: null\n")
    result = tvc("build", recipe, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {recipe}:3:" in result.stderr
    assert "'weights'" in result.stderr


# -- plugins ---------------------------------------------------------------------------------------


def test_plugins_tells_active_failed_incompatible_and_disabled_apart(
    install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-nets", NETS)
    install("bad-nets", BROKEN)
    install("late-nets", "TVC_API = (9, 0)")
    install("off-nets", BROKEN)
    monkeypatch.setenv("TVC_DISABLE", "off-nets")
    found = {fact["plugin"]: fact for fact in data("plugins")}
    assert [found[f"{name}-nets"]["status"] for name in ("acme", "bad", "late", "off")] == [
        "active",
        "failed",
        "incompatible",
        "disabled",
    ]
    acme = found["acme-nets"]
    assert [
        acme[key] for key in ("version", "api", "backbones", "blocks", "ops", "initializers")
    ] == ["1.0", "1.0", 3, 3, 0, 1]
    assert found["tvc-core"]["version"]
    assert "acme_engine" in found["bad-nets"]["error"]


def test_plugins_shows_tracebacks_only_when_asked(install: Callable[[str, str], None]) -> None:
    install("bad-nets", BROKEN)
    assert "Traceback" not in fine("plugins").output
    shown = fine("plugins", "--traceback").stdout
    assert "Traceback (most recent call last)" in shown
    assert "bad_nets_plugin.py" in shown


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("lst",),
        ("list", "bakbone"),
        ("list", "ops", "--origin", "acme"),
        ("list", "--category", "attention"),
        ("show",),
        ("show", "gate", "--size", "32"),
        ("show", "gate", "--target", "fc*"),
        ("show", "net9", "--size", "0"),
        ("build", "--frobnicate"),
    ],
)
@pytest.mark.usefixtures("nets")
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    result = tvc(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: tvc" in result.stderr


@pytest.mark.parametrize(
    "args",
    [("list", "--origin", "acmee"), ("list", "ops", "--owner", "acme-nts"), ("show", "nett9")],
)
@pytest.mark.usefixtures("nets")
def test_an_error_is_one_line_on_stderr_and_exit_code_1(args: tuple[str, ...]) -> None:
    result = tvc(*args, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "Did you mean" in result.stderr


@pytest.mark.parametrize("args", [("--debug", "show", "nett9"), ("show", "nett9", "--debug")])
@pytest.mark.usefixtures("nets")
def test_debug_shows_the_traceback_before_the_error(args: tuple[str, ...]) -> None:
    result = tvc(*args)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_bug_is_called_one_and_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(tvc_cli.commands, "Registry", broken)
    result = tvc("list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: KeyError: 'oops'" in result.stderr
    assert "bug" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in tvc("list", "--debug").stderr


def test_control_c_is_exit_code_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tvc_cli.commands, "Registry", interrupted)
    result = tvc("list")
    assert (result.exit_code, result.output) == (130, "interrupted\n")


# -- output ----------------------------------------------------------------------------------------


def test_a_pipe_gets_whole_lines_whatever_their_length(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "summary"], [["long", "word " * 60 + "end"], ["none", None]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("word end")
    assert lines[2] == "none  -"


def test_a_terminal_gets_brackets_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["name", "summary"], [["se", "keeps [bold] and [N, C, H, W]"]])
    assert "keeps [bold] and [N, C, H, W]" in capsys.readouterr().out


# -- the process -----------------------------------------------------------------------------------

HEAVY = ("torch", "torchvision", "rich", "numpy")


def process(code: str, path: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with a folder in front of what it imports from."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVC_")}
    paths = os.pathsep.join(entry for entry in (path, environment.get("PYTHONPATH", "")) if entry)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "PYTHONPATH": paths, **env},
    )


def heavy_after(command: str, path: str = "", **env: str) -> list[str]:
    """Return which heavy modules a command has imported when it exits."""
    code = f"""
import sys
from tvc_cli.main import main
sys.argv[1:] = {command.split()}
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = process(code, path, **env)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "command",
    ["list", "list --json", "list blocks", "plugins", "plugins --json", "--help", "--version"],
)
def test_listing_imports_nothing_heavy(command: str) -> None:
    assert heavy_after(command) == []


@pytest.mark.parametrize("command", ["--help", "list blocks"])
def test_what_is_imported_at_the_start_is_not_collected_again_at_the_end(command: str) -> None:
    code = f"""
import atexit, gc, sys
from tvc_cli.main import main
frozen = lambda: (gc.isenabled(), gc.get_freeze_count() > 10_000)
atexit.register(lambda: print(frozen(), file=sys.stderr))
sys.argv[1:] = {command.split()}
main()
"""
    assert process(code).stderr.splitlines() == ["(True, True)"]


def test_the_test_of_lightness_can_fail(tmp_path: Path) -> None:
    # stands for the real one, which takes seconds
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    write_distribution(tmp_path, "heavy-nets", "import torch\nTVC_API = (1, 0)")
    assert heavy_after("list", str(tmp_path), TVC_ONLY="heavy-nets") == ["torch"]


def test_a_reader_that_stops_early_causes_no_traceback() -> None:
    code = """
import os, sys
from tvc_cli.main import main
read, write = os.pipe()
os.close(read)  # as after `tvc list | head -0`
os.dup2(write, 1)
sys.argv[1:] = ["list"]
main()
"""
    done = process(code)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "code"), [("--version", 0), ("show no_such_thing", 1), ("show", 2)]
)
def test_the_process_has_the_exit_code(command: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tvc_cli", *command.split()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert (done.stdout == "") == (code != 0)


# -- commands of plugins ---------------------------------------------------------------------------

COMMAND = """
from tvc_core import hookimpl

TVC_API = (1, 1)

@hookimpl(optionalhook=True)
def tvc_cli_commands():
    from tvc_cli import CommandSpec
    home = "MODULE"
    return [
        CommandSpec(name="say_hello", factory=f"{home}_body:hello", summary="Say hello."),
        CommandSpec(name="own_NAME", factory=f"{home}_body:hello", summary="Say hello, too."),
        CommandSpec(name="lost_NAME", factory="no_such_module:hello", summary="Is not there."),
        CommandSpec(name="odd_NAME", factory="builtins:dict", summary="Is no command."),
    ]
"""
BODY = """
import click

@click.command()
@click.option("--name", default="world")
def hello(name):
    print(f"hello {name} from NAME")
    if name == "nobody":
        raise click.UsageError("name somebody")
    if name == "bug":
        raise KeyError(name)
"""


@pytest.fixture
def commands(
    install: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return a function that installs a plugin with commands."""

    def write(name: str, source: str = COMMAND) -> None:
        module = f"{name.replace('-', '_')}_plugin"
        install(name, source.replace("MODULE", module).replace("NAME", name.partition("-")[0]))
        monkeypatch.setenv("TVC_ONLY", f"{os.environ['TVC_ONLY']},tvc-cli")
        body = BODY.replace("NAME", name)
        monkeypatch.delitem(sys.modules, f"{module}_body", raising=False)  # of an earlier test
        (tmp_path / "site" / f"{module}_body.py").write_text(body, encoding="utf-8")

    return write


OWN = ["build", "check", "doctor", "list", "new-plugin", "plugins", "show"]
OF_OTHERS = [
    *("average", "bench", "cam", "data", "diff", "evaluate", "export", "fmt", "init", "inspect"),
    *("lock", "predict", "pull", "push", "schema", "train", "tune", "validate", "verify"),
]


def listed_commands(result: Result) -> dict[str, str]:
    rows = result.stdout.partition("Commands:\n")[2].splitlines()
    return dict(
        row.strip().split("  ", 1) for row in rows if row.startswith("  ") and row[2] != " "
    )


def test_the_commands_of_tvc_are_all_there_is_without_plugins() -> None:
    assert sorted(listed_commands(tvc("--no-plugins", "--help"))) == OWN
    every = sorted([*OWN, *OF_OTHERS])
    assert sorted(listed_commands(tvc("--help"))) == every
    assert [fact["name"].replace("_", "-") for fact in data("list", "commands")] == every


def test_a_plugins_command_is_listed_and_used(commands: Callable[..., None]) -> None:
    commands("acme-tools")
    found = listed_commands(tvc("--help"))
    assert {*found} == {*OWN, "say-hello", "own-acme", "lost-acme", "odd-acme"}
    assert found["say-hello"].strip() == "Say hello."
    assert "acme_tools_plugin_body" not in sys.modules, "the help imports no command"
    for name in ("say-hello", "say_hello", "acme-tools:say-hello", "Acme_Tools:say_hello"):
        assert fine(name, "--name", "you").stdout == "hello you from acme-tools\n"
    assert "--name" in fine("say-hello", "--help").stdout
    assert [fact["name"] for fact in data("list", "commands", "--owner", "acme-tools")] == [
        "lost_acme",
        "odd_acme",
        "own_acme",
        "say_hello",
    ]
    assert data("show", "say_hello")["qualified"] == "acme-tools:say_hello"
    [fact] = [fact for fact in data("plugins") if fact["plugin"] == "acme-tools"]
    assert fact["commands"] == 4


def test_what_a_plugins_command_raises_is_shown_as_of_any_other(
    commands: Callable[..., None],
) -> None:
    commands("acme-tools")
    usage = tvc("say-hello", "--name", "nobody")
    assert usage.exit_code == 2 and "name somebody" in usage.stderr
    bug = tvc("say-hello", "--name", "bug")
    assert bug.exit_code == 1 and "This is a bug in tvc or in a plugin" in bug.stderr


def test_a_command_that_is_broken_costs_only_itself(commands: Callable[..., None]) -> None:
    commands("acme-tools")
    for name, words in (
        ("lost-acme", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("odd-acme", "is of type type, not a click command"),
    ):
        result = tvc(name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr and "fault of the distribution 'acme-tools'" in result.stderr
    assert fine("own-acme").stdout == "hello world from acme-tools\n"
    assert fine("list", "ops").stdout


def test_a_plugin_that_is_broken_leaves_the_help_and_every_other_command(
    commands: Callable[..., None],
) -> None:
    commands("acme-tools")
    commands("bad-tools", COMMAND + "raise OSError('disk')")
    result = tvc("--help")
    assert {*OWN, "say-hello"} <= {*listed_commands(result)} and "bad" not in result.stdout
    assert result.stderr.count("warning: The plugin bad-tools 1.0 (failed)") == 1
    assert fine("say-hello").stdout == "hello world from acme-tools\n"
    unknown = tvc("own-bad")
    assert unknown.exit_code == 2 and "Unknown command 'own-bad'" in unknown.stderr
    assert "Nothing of bad-tools could be loaded" in unknown.stderr


def test_strict_does_not_take_the_commands_away(
    commands: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands("bad-tools", COMMAND + "raise OSError('disk')")
    monkeypatch.setenv("TVC_STRICT", "1")
    assert {*OWN} <= {*listed_commands(tvc("--help"))}
    assert tvc("list").stderr.startswith("error: TVC_STRICT is set")


def test_two_plugins_with_one_command_clash_in_that_name_alone(
    commands: Callable[..., None],
) -> None:
    commands("acme-tools")
    commands("zeta-tools")
    clash = tvc("say-hello")
    assert clash.exit_code == 1
    assert "write 'acme-tools:say_hello' or 'zeta-tools:say_hello'" in clash.stderr
    for owner in ("acme-tools", "zeta-tools"):
        assert fine(f"{owner}:say-hello").stdout == f"hello world from {owner}\n"
        assert f"{owner}:say-hello" in listed_commands(tvc("--help"))
    assert fine("own-zeta").stdout == "hello world from zeta-tools\n"


def test_tvcs_own_command_does_not_win(commands: Callable[..., None]) -> None:
    commands("acme-tools", COMMAND.replace("say_hello", "list"))
    assert "write 'acme-tools:list' or 'tvc-cli:list'" in tvc("list").stderr
    assert fine("acme-tools:list").stdout == "hello world from acme-tools\n"
    assert fine("tvc-cli:list", "ops").stdout


def test_doctor_works_where_a_plugin_takes_its_name(commands: Callable[..., None]) -> None:
    commands("acme-tools", COMMAND.replace("say_hello", "doctor"))
    result = tvc("doctor")
    assert result.exit_code == 1 and "the command 'doctor' is offered by" in result.stdout


def test_a_plugins_command_prints_to_stdout_and_what_loading_prints_does_not(
    tmp_path: Path,
) -> None:
    source = COMMAND.replace("MODULE", "acme_tools_plugin").replace("NAME", "acme")
    write_distribution(tmp_path, "acme-tools", "print('loading')\n" + source)
    (tmp_path / "acme_tools_plugin_body.py").write_text(BODY, encoding="utf-8")
    code = "import sys; sys.argv[1:] = ['say-hello']; from tvc_cli.main import main; main()"
    done = process(code, str(tmp_path), TVC_ONLY="acme-tools")
    assert (done.returncode, done.stdout) == (0, "hello world from NAME\n")
    assert "loading" in done.stderr


def test_the_help_takes_little_longer_than_importing_the_core() -> None:
    """With six plugins that offer commands it is 1.25 times on an idle machine, where 1.3 is the
    goal; of the processor's time, and some more on a busy one.
    """
    import statistics

    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVC_")}

    def spent(*command: str) -> float:
        before = os.times()
        subprocess.run(
            [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment
        )
        after = os.times()
        return (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )

    pairs = [(spent("-c", "import tvc_core"), spent("-m", "tvc_cli", "--help")) for _ in range(5)]
    assert statistics.median(command / bare for bare, command in pairs) < 1.6


NOISY = """
import atexit, os, sys, threading, time
from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 0)

def write(word):
    print("sys.stdout", word, flush=True)
    print("sys.__stdout__", word, file=sys.__stdout__, flush=True)
    os.write(1, f"descriptor {word}\\n".encode())
    os.system(f"echo child {word}")

def keep_writing():
    while True:
        write("thread")
        time.sleep(0.001)

write("import")
threading.Thread(target=keep_writing, daemon=True).start()
atexit.register(write, "atexit")
kept = sys.stdout

@hookimpl
def tvc_blocks():
    write("hook")
    sys.stdout = open(os.devnull, "w") if os.environ.get("REPLACE") else kept
    return [BlockSpec(name="gate", factory="acme:Gate")]
"""


@pytest.mark.parametrize("replace", ["", "1"])
@pytest.mark.parametrize("command", ["list blocks --json", "plugins --json"])
def test_stdout_has_the_result_alone_whatever_a_plugin_writes_and_when(
    tmp_path: Path, command: str, replace: str
) -> None:
    write_distribution(tmp_path, "noisy-blocks", NOISY)
    code = f"import sys; sys.argv[1:] = {command.split()}; from tvc_cli.main import main; main()"
    done = process(code, str(tmp_path), TVC_ONLY="noisy-blocks", REPLACE=replace)
    assert done.returncode == 0, done.stderr
    assert {"gate", "noisy-blocks"} & {
        fact.get("name", fact["plugin"]) for fact in json.loads(done.stdout)
    }
    # lines of print may be broken by those of the other thread
    said = {"descriptor import", "descriptor atexit", "child import"}
    assert said <= set(done.stderr.splitlines()) and "sys.__stdout__" in done.stderr


def test_plugins_shows_what_loading_a_plugin_changes(install: Callable[[str, str], None]) -> None:
    install("acme-nets", NETS + "\nimport os\nos.environ['ACME'] = '1'")
    install("bad-nets", BROKEN)
    lines = {line.split()[0]: line for line in fine("plugins").stdout.splitlines()}
    assert lines["acme-nets"].endswith("restored after loading it: environment variables (ACME)")
    assert lines["bad-nets"].endswith("ImportError: no module named acme_engine")
    assert {fact["plugin"]: fact["side_effects"] for fact in data("plugins")}["acme-nets"] == [
        "environment variables (ACME)"
    ]


def test_help_and_version_are_results() -> None:
    for command in ("--help", "list --help", "--version"):
        done = subprocess.run(
            [sys.executable, "-m", "tvc_cli", *command.split()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout and not done.stderr


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_no_error(closed: int) -> None:
    command = f"exec {closed}>&-; exec '{sys.executable}' -m tvc_cli list ops"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ("inject" in done.stdout) is (closed == 2)


@pytest.mark.parametrize("args", [("--no-plugins", "list", "ops"), ("list", "ops", "--no-plugins")])
def test_no_plugins_leaves_the_cores_own_whatever_is_installed(
    args: tuple[str, ...], install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-nets", NETS)
    install("bad-nets", "raise AssertionError('was imported')")
    before = dict(os.environ)
    assert [fact["name"] for fact in data(*args)] == ["inject", "replace", "wrap"]
    assert tvc(*args).stderr == ""
    assert tvc("--no-plugins", "list").stdout == ""
    assert {fact["plugin"]: fact["status"] for fact in data("plugins", "--no-plugins")}[
        "bad-nets"
    ] == "disabled"
    assert dict(os.environ) == before
    assert [fact["name"] for fact in data("list")] == ["net9", "net10", "other"]


def test_control_c_while_plugins_load_shows_no_traceback(tmp_path: Path) -> None:
    ctrl_c = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"
    write_distribution(tmp_path, "slow-nets", ctrl_c)
    code = "import sys; sys.argv[1:] = ['list']; from tvc_cli.main import main; main()"
    done = process(code, str(tmp_path), TVC_ONLY="slow-nets")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
