"""The zoo: whatever is installed besides, the commands work, builds have the same bits, and the
culprit is named once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from beasts import BEASTS, HABITS, QUIET, Beast, owner_of, release

ALL = {**BEASTS, **QUIET, **HABITS}
SOUND = "tvc-resnet,tvc-attention"
TIMEOUT = "4"
"""What a beast may take [s]; those that hang take it whole. Beside one that loops, which goes on in
its thread, importing numpy took up to 1.8 s on two cores.
"""

STOPS_TORCH = "entry_points_not_text"
"""Torch reads all entry points when it is imported, and fails itself: nobody can build beside this
one.
"""

SILENCES = "ignores_warnings"
"""A plugin that ignores all warnings of the process ignores those about other plugins: `tvc doctor`
names it, and `tvc plugins` shows the others.
"""

RECIPE = "backbone: {name: resnet18, weights: null, patches: {layer3: {wrap: se}}}\n"
BUILD = """
import hashlib, random, sys
import torch
from tvc_core import HybridBuilder
for seed in map(int, sys.argv[1:] or ["3"]):
    random.seed(seed), torch.manual_seed(seed)
    model = HybridBuilder().from_torchvision("resnet18", None, patches={"layer3": {"wrap": "se"}})
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        kind = f"{name} {tensor.dtype} {tensor.device}".encode()
        digest.update(kind + tensor.numpy().tobytes())
    rest = random.random(), torch.rand(3).tolist(), torch.is_grad_enabled()
    digest.update(repr((*rest, torch.get_default_dtype())).encode())
    print(digest.hexdigest())
"""


def process(
    folder: Path | None, *command: str, only: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python with the plugins of a folder and those that a build needs; standard input stays
    open and says nothing.
    """
    owners = ",".join([SOUND, *only])
    path = os.pathsep.join([str(folder)] if folder else [])
    ours = {
        "PYTHONPATH": path,
        "TVC_ONLY": owners,
        "TVC_IMPORT_TIMEOUT": TIMEOUT,
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **ours}
    waits, says_nothing = os.pipe()
    try:
        return subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdin=waits,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        os.close(waits), os.close(says_nothing)


def tvc(
    folder: Path | None, *arguments: str, only: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    done = process(folder, "-m", "tvc_cli", *arguments, only=only)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def names_in(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {fact["name"] for fact in json.loads(done.stdout)}


def lines_that_name(owner: str, text: str) -> int:
    return sum(f"{owner} " in line for line in text.splitlines())


def check_facts(found: list[dict[str, Any]], name: str, beast: Beast) -> None:
    facts = [fact for fact in found if fact["plugin"] == owner_of(name)]
    assert facts, f"{name} is missing"
    for fact in facts:
        assert fact["status"] == beast.status, (name, fact)
        if beast.status == "active":
            assert beast.words in ", ".join(fact.get("side_effects", [beast.words]))
        else:
            assert beast.words in fact["error"], name


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder_with(ALL, tmp_path_factory)


@pytest.fixture(scope="module")
def everybody_beside_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder_with(
        {name: beast for name, beast in ALL.items() if name != STOPS_TORCH}, tmp_path_factory
    )


def _folder_with(beasts: dict[str, Beast], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for name, beast in beasts.items():
        release(folder, name, beast)
    return folder


@pytest.fixture(scope="module")
def alone() -> set[str]:
    """What is listed without any beast."""
    return names_in(tvc(None, "list", "--json"))


def everybody_but(*slow: str) -> list[str]:
    """Return the owners of all beasts that take no seconds, and these."""
    return [
        owner_of(name)
        for name, beast in ALL.items()
        if (not beast.slow or name in slow) and name != SILENCES
    ]


# -- each ------------------------------------------------------------------------------------------


HARMFUL = (
    *("system_exit", "calls_exit", "recursion", "loops", "hook_sleeps", "gives_time_bomb"),
    *("no_metadata", STOPS_TORCH, "changes_folder", "sets_environment", "prints_at_exit"),
    *("prints", "writes", "finds_first", "sets_alarm", "sets_excepthook", SILENCES),
)
"""Those that can harm the process they are loaded in, each in another way. What the others do to a
registry is tested inside of a process, and with all at once; the sweep runs each alone, too.
"""


def _each() -> list[Any]:
    assert {*HARMFUL} <= {*ALL}
    return [pytest.param(name, marks=() if name in HARMFUL else pytest.mark.sweep) for name in ALL]


@pytest.mark.parametrize("name", _each())
def test_the_listing_stays_what_it_is_and_names_the_culprit_once(
    tmp_path: Path, alone: set[str], name: str
) -> None:
    release(tmp_path, name, ALL[name])
    done = tvc(tmp_path, "list", "--json", only=[owner_of(name)])
    assert names_in(done) == alone
    assert lines_that_name(owner_of(name), done.stderr) == (name in BEASTS)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ALL)
def test_every_command_and_a_build_work_with_each(tmp_path: Path, built: str, name: str) -> None:
    release(tmp_path, name, ALL[name])
    only = [owner_of(name)]
    assert "resnet18" in tvc(tmp_path, "list", only=only).stdout
    plugins = tvc(tmp_path, "plugins", "--json", only=only)
    check_facts(json.loads(plugins.stdout), name, ALL[name])
    assert lines_that_name(owner_of(name), plugins.stderr) == 0
    if name == STOPS_TORCH:
        return
    assert built in process(tmp_path, "-c", BUILD, only=only).stdout
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = tvc(tmp_path, "build", str(tmp_path / "recipe.yaml"), "--json", only=only)
    assert json.loads(done.stdout)["explain"]
    assert lines_that_name(owner_of(name), done.stderr) == (name in BEASTS)


# -- all at once -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digests() -> list[str]:
    """The digests of builds without any beast, under the seed and under another."""
    done = process(None, "-c", BUILD, "3", "4")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def built(digests: list[str]) -> str:
    """The digest of a build without any beast."""
    return digests[0]


def test_the_digest_of_a_build_can_change(digests: list[str]) -> None:
    assert [len(digest) for digest in digests] == [64, 64] and len({*digests}) == 2


def test_with_all_at_once_the_listing_works_and_every_culprit_is_named_once(
    everybody: Path, alone: set[str]
) -> None:
    done = tvc(everybody, "list", "--json", only=everybody_but("sleeps", "stubborn"))
    assert names_in(done) == alone
    named = {
        name: lines_that_name(owner_of(name), done.stderr)
        for name in ALL
        if not ALL[name].slow and name != SILENCES
    }
    assert named == {name: int(name in BEASTS) for name in named}


def test_with_all_at_once_the_table_of_plugins_has_each_and_nothing_besides(
    everybody: Path,
) -> None:
    only = everybody_but("loops", "hook_sleeps", "seeds_numpy")
    done = tvc(everybody, "plugins", "--json", only=only)
    found = json.loads(done.stdout)
    for name, beast in ALL.items():
        if owner_of(name) in only:
            check_facts(found, name, beast)
    assert {fact["plugin"] for fact in found if fact["plugin"].startswith("beast")} == {
        owner_of(name) for name in ALL
    }
    assert sum(fact["plugin"] == owner_of("hook_raises") for fact in found) == 1
    assert "warning" not in done.stderr


def test_with_all_at_once_a_build_has_the_same_bits(
    everybody_beside_torch: Path, built: str
) -> None:
    done = process(
        everybody_beside_torch,
        "-c",
        BUILD,
        only=everybody_but("waits", "seeds_torch", "sets_dtype", "sets_device"),
    )
    assert done.returncode == 0, done.stderr
    assert built in done.stdout


def test_with_all_at_once_a_recipe_is_built(everybody_beside_torch: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    only = everybody_but("sleeps", "hook_sleeps")
    done = tvc(everybody_beside_torch, "build", str(tmp_path / "recipe.yaml"), "--json", only=only)
    assert "layer3" in json.loads(done.stdout)["explain"]
    named = {
        name: lines_that_name(owner_of(name), done.stderr) for name in ALL if owner_of(name) in only
    }
    del named[STOPS_TORCH]
    assert named == {name: int(name in BEASTS) for name in named}


@pytest.mark.sweep
def test_with_really_all_at_once_everything_works(
    everybody_beside_torch: Path, alone: set[str], built: str, tmp_path: Path
) -> None:
    only = [owner_of(name) for name in ALL if name != SILENCES]
    assert names_in(tvc(everybody_beside_torch, "list", "--json", only=only)) == alone
    found = json.loads(tvc(everybody_beside_torch, "plugins", "--json", only=only).stdout)
    # one of them brings torch along
    lost_in_another = {name for name in BEASTS if ALL[name].slow and ALL[name].status == "active"}
    for name, beast in ALL.items():
        if name not in {STOPS_TORCH, SILENCES, *lost_in_another}:
            check_facts(found, name, beast)
    assert built in process(everybody_beside_torch, "-c", BUILD, only=only).stdout
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = tvc(everybody_beside_torch, "build", str(tmp_path / "recipe.yaml"), only=only)
    assert "layer3" in done.stdout
