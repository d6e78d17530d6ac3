"""`tvc doctor`: what it finds, in plugins that would break the process that loads them, too, and
what it advises.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvc_cli.commands
from click.testing import CliRunner, Result
from tvc_cli import doctor, probe

import tvc_core

HEADER = "from tvc_core import BlockSpec, hookimpl\nTVC_API = (1, 0)\n"
GOOD = (
    HEADER
    + "@hookimpl\ndef tvc_blocks():\n    return [BlockSpec(name='gate', factory='acme:Gate')]\n"
)

Install = Callable[..., Path]


@pytest.fixture
def install(fake_distribution: Install, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a distribution for this test and its processes, where nothing
    else is in force.
    """
    for variable in [name for name in os.environ if name.startswith("TVC_")]:
        monkeypatch.delenv(variable)
    owners: list[str] = []

    def write(name: str, source: str, **more: str) -> Path:
        info = fake_distribution(name, source, **more)
        owners.append(name)
        monkeypatch.setenv("TVC_ONLY", ",".join(owners))
        return info

    return write


def run(*args: str) -> Result:
    return CliRunner().invoke(tvc_cli.commands.tvc, ["doctor", *args], prog_name="tvc")


def examined(exit_code: int) -> dict[str, Any]:
    result = run("--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["fine"] is (exit_code == 0)
    return found


def problems(found: dict[str, Any]) -> dict[str, str]:
    """Return what is said of each thing that has a problem; each is named once."""
    about = [finding["about"] for finding in found["findings"] if finding["level"] == "problem"]
    assert len(set(about)) == len(about)
    return {
        finding["about"]: finding["text"]
        for finding in found["findings"]
        if finding["level"] == "problem"
    }


def test_a_sound_plugin_is_fine_and_its_facts_are_those_of_its_own_process(
    install: Install,
) -> None:
    install("acme-blocks", GOOD)
    before = set(sys.modules)
    found = examined(0)
    [fact] = [fact for fact in found["plugins"] if fact["plugin"] == "acme-blocks"]
    assert (fact["status"], fact["version"], fact["api"], fact["blocks"]) == (
        "active",
        "1.0",
        "1.0",
        1,
    )
    assert 0 <= fact["seconds"] < 5 and fact["offers"] == {"block": ["gate"]}
    assert problems(found) == {}
    assert "acme_blocks_plugin" not in set(sys.modules) - before
    text = run().stdout
    assert "nothing is wrong" in text and "problem" not in text
    assert "tvc-core 0." in text and "torch 2." in text and "torchvision 0." in text


BAD = {
    "import-error": (
        "import module_that_is_not_there",
        "is failed: ModuleNotFoundError: No module named",
    ),
    "exits": ("import os; os._exit(0)", "ended the process that loaded it (exit code 0)"),
    "crashes": (
        "import faulthandler; faulthandler._sigsegv()",
        "crashed the process that loaded it (SIGSEGV)",
    ),
    "hangs": ("import threading; threading.Event().wait()", "is failed: "),
    "never-lets-go": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "did not come back within"),
    "future": (GOOD.replace("(1, 0)", "(9, 0)"), "is incompatible: written for plugin API 9.0"),
    "noise": (
        GOOD.replace("gate", "noise") + "\nimport os\nos.write(1, b'[1, 2')\nprint('{')",
        "loading noise changes for the whole process: output",
    ),
    "heavy": (GOOD.replace("gate", "heavy") + "\nimport timm", "loading heavy imports timm"),
}


def test_each_bad_plugin_is_named_once_with_its_fault_and_advice(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "2")
    monkeypatch.setattr(probe, "_GRACE", 4.0)
    install("acme-blocks", GOOD)
    (tmp_path / "site" / "timm.py").write_text("")  # stands for the real one, which takes seconds
    for name, (source, _) in BAD.items():
        install(name, source)
    found = examined(1)
    said = problems(found)
    assert set(said) == set(BAD)
    for name, (_, text) in BAD.items():
        assert text in said[name], said[name]
    for finding in found["findings"]:
        if finding["level"] == "problem":
            assert (
                f"TVC_DISABLE={finding['about']}" in finding["advice"]
                or "its authors should" in finding["advice"]
            )
    tracebacks = {finding["about"]: finding["traceback"] or "" for finding in found["findings"]}
    for name in ("import-error", "hangs", "crashes", "never-lets-go"):
        assert f"{name.replace('-', '_')}_plugin.py" in tracebacks[name], (
            f"{name}: {tracebacks[name]}"
        )
    status = {fact["plugin"]: fact["status"] for fact in found["plugins"]}
    assert status["acme-blocks"] == "active" and status["exits"] == "failed"


HABITS = pytest.importorskip("zoo.beasts", reason="the zoo is beside the core")
SLOW_ENOUGH = {"detects_anomalies", "moves_hub"}


def test_each_habit_of_a_plugin_is_named_and_a_sound_one_has_none(
    install: Install, tmp_path: Path
) -> None:
    """What plugins do to the streams, the signals and everything else of the process."""
    beasts = {**HABITS.HABITS, **HABITS.STREAMS}
    install("acme-blocks", GOOD)
    for name, beast in beasts.items():
        if not beast.slow:
            HABITS.release(tmp_path / "site", name, beast)
            os.environ["TVC_ONLY"] += f",{HABITS.owner_of(name)}"
    found = problems(examined(1))
    for name, beast in beasts.items():
        if not beast.slow:
            text = found.pop(HABITS.owner_of(name))
            assert (beast.doctor or beast.words) in text, (name, text)
            changed = text.partition("whole process: ")[2]
            assert not beast.doctor or changed in (beast.doctor, f"{beast.doctor}, output"), text
    assert found == {}


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(SLOW_ENOUGH))
def test_a_habit_that_comes_with_a_large_package_is_named_besides(
    install: Install, tmp_path: Path, name: str
) -> None:
    install("acme-blocks", GOOD)
    HABITS.release(tmp_path / "site", name, HABITS.HABITS[name])
    os.environ["TVC_ONLY"] += f",{HABITS.owner_of(name)}"
    text = problems(examined(1))[HABITS.owner_of(name)]
    assert text.endswith(f"changes for the whole process: {HABITS.HABITS[name].doctor}")
    assert "imports " in text


def test_plugins_that_define_a_kind_offer_of_it_and_clash_in_it(install: Install) -> None:
    kind = """
from dataclasses import dataclass
from typing import ClassVar
from tvc_core import Kind, Spec, hookimpl, hookspec
TVC_API = (1, 1)
@dataclass(frozen=True, kw_only=True)
class LossSpec(Spec):
    kind: ClassVar[str] = "loss"
@hookspec
def acme_losses(): ...
TVC_KINDS = (Kind(spec=LossSpec, hook=acme_losses, plural="losses"),)
"""
    offer = """
from tvc_core import hookimpl
TVC_API = (1, 1)
@hookimpl(optionalhook=True)
def acme_losses():
    from acme_plugin import LossSpec
    return [LossSpec(name="focal", factory="a:b")]
"""
    install("acme", kind)
    install("beta", offer)
    assert problems(examined(0)) == {}
    install("zeta", offer.replace("(optionalhook=True)", ""))
    found = examined(1)
    assert problems(found) == {
        "focal": "the loss 'focal' is offered by beta, zeta, so the short name is an error"
    }
    [advice] = [each["advice"] for each in found["findings"] if each["about"] == "focal"]
    assert advice.startswith("write beta:focal or zeta:focal, or leave one out")
    install("acme-two", kind.replace("acme_losses", "acme_two_losses"))
    said = problems(examined(1))
    assert "the kind 'loss' is offered by acme, acme-two" in said["loss"]


def test_the_current_folder_is_nobodys_business(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-blocks", GOOD)
    for name in ("acme_blocks_plugin", "pluggy", "json", "tvc_cli"):
        (tmp_path / f"{name}.py").write_text(
            "raise AssertionError('was imported from the current folder')"
        )
    monkeypatch.chdir(tmp_path)
    assert problems(examined(0)) == {}


def test_what_a_plugin_starts_holds_nobody_up(install: Install) -> None:
    start = "import subprocess, sys, threading, time, atexit\n"
    start += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])\n"
    start += (
        "threading.Thread(target=time.sleep, args=(30,)).start()\natexit.register(time.sleep, 30)\n"
    )
    install("busy-blocks", start + GOOD)
    before = time.monotonic()
    [fact] = [
        fact
        for fact in json.loads(run("--json").stdout)["plugins"]
        if fact["plugin"] == "busy-blocks"
    ]
    assert fact["status"] == "active"
    assert time.monotonic() - before < 20


def test_tracebacks_are_shown_on_request(install: Install) -> None:
    install("bad-blocks", "import module_that_is_not_there")
    plain, full = run(), run("--traceback")
    assert (
        "Traceback (most recent call last)" not in plain.output
        and "--traceback shows" in plain.stderr
    )
    assert (
        "Traceback (most recent call last)" in full.stdout
        and "--traceback shows" not in full.stderr
    )


def test_a_clash_gives_both_qualified_names(install: Install) -> None:
    install("acme-blocks", GOOD)
    install("zeta-blocks", GOOD)
    [finding] = [finding for finding in examined(1)["findings"] if finding["level"] == "problem"]
    assert (finding["about"], "acme-blocks, zeta-blocks" in finding["text"]) == ("gate", True)
    assert "acme-blocks:gate or zeta-blocks:gate" in finding["advice"]


def test_a_slow_import_is_a_note(install: Install) -> None:
    install("slow-blocks", "import time; time.sleep(0.4)\n" + GOOD)
    found = examined(0)
    [text] = [finding["text"] for finding in found["findings"] if finding["about"] == "slow-blocks"]
    assert text.startswith("loading slow-blocks takes 0.")


def test_variables_are_explained_and_unknown_ones_are_problems(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-blocks", GOOD)
    install("out-blocks", "raise AssertionError('is left out, so nobody loads it')")
    monkeypatch.setenv("TVC_ONLY", "acme-blocks, Acme_Blokcs")
    monkeypatch.setenv("TVC_DISABEL", "x")
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "soon")
    found = examined(1)
    said = {(finding["level"], finding["about"]): finding for finding in found["findings"]}
    assert "no such variable" in said["problem", "TVC_DISABEL"]["text"]
    assert said["problem", "TVC_DISABEL"]["advice"] == "did you mean TVC_DISABLE?"
    assert "'acme-blokcs', which is not an installed plugin" in said["problem", "TVC_ONLY"]["text"]
    assert said["problem", "TVC_ONLY"]["advice"] == "did you mean acme-blocks?"
    assert "not a number of seconds" in said["problem", "TVC_IMPORT_TIMEOUT"]["text"]
    left_out = [
        finding["text"] for finding in found["findings"] if finding["text"].startswith("left out")
    ]
    assert len(left_out) == 1 and "out-blocks" in left_out[0] and "acme-blocks" not in left_out[0]
    assert {fact["plugin"]: fact["status"] for fact in found["plugins"]}["out-blocks"] == "disabled"


def test_no_plugins_loads_none(install: Install) -> None:
    install("acme-blocks", "raise AssertionError('was loaded')")
    result = run("--no-plugins")
    assert result.exit_code == 0
    assert "TVC_ONLY=tvc-core is in force" in result.stdout and "acme-blocks" in result.stdout


def test_unsupported_and_missing_requirements_are_problems(install: Install) -> None:
    info = install("acme-blocks", GOOD)
    wants = (
        "tvc-core>=99.1",
        "torch<2.0",
        "nowhere-to-be-found>=1",
        "torchvision>=0.1,!=0.2",
        "pluggy",
        'numpy<0; extra == "x"',
        'numpy<0; python_version < "3"',
        "click~=99.0",
    )
    with (info / "METADATA").open("a") as metadata:
        metadata.writelines(f"Requires-Dist: {want}\n" for want in wants)
    texts = [
        finding["text"] for finding in examined(1)["findings"] if finding["level"] == "problem"
    ]
    assert len(texts) == 4
    assert "requires tvc-core>=99.1, and tvc-core 0." in texts[0]
    assert "requires torch<2.0, and torch 2." in texts[1]
    assert "nowhere-to-be-found is not installed" in texts[2]
    assert "requires click~=99.0, and click 8." in texts[3]


def test_distributions_of_several_versions_are_a_problem(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme-blocks", GOOD)
    versions = {"tvc-core": "0.2.0", "tvc-cli": "0.2.0", "tvc-resnet": "0.1.0", "torch": "2.15.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "_requires", lambda name: [])
    [finding] = [finding for finding in examined(1)["findings"] if finding["level"] == "problem"]
    assert "0.1.0 of tvc-resnet; 0.2.0 of tvc-core, tvc-cli" in finding["text"]
    assert set(finding["advice"].split()[3:]) == {"tvc-core", "tvc-cli", "tvc-resnet"}


def test_broken_metadata_is_a_problem(install: Install) -> None:
    install("acme-blocks", GOOD)
    info = install("broken-blocks", GOOD.replace("gate", "other"))
    (info / "METADATA").write_bytes(b"\xff\xfe\x00")
    found = examined(1)
    assert any(
        "broken_blocks" in finding["text"] or "broken-blocks" in finding["text"]
        for finding in found["findings"]
    )


@pytest.mark.parametrize(
    ("name", "value", "level", "text"),
    [
        ("TVC_VERIFY_WEIGHTS", "false", "problem", "is 'false', neither 0 nor 1: weight files are"),
        ("TVC_VERIFY_WEIGHTS", "0", "note", "=0 is in force: it does not compare weight files"),
        ("TVC_VERIFY_WEIGHTS", "1", "note", "TVC_VERIFY_WEIGHTS=1 changes nothing"),
        ("TVC_STRICT", "0", "note", "TVC_STRICT=0 changes nothing"),
        ("TVC_IMPORT_TIMEOUT", "0", "problem", "is '0', not a number of seconds above 0"),
        ("TVC_IMPORT_TIMEOUT", "nan", "problem", "is 'nan', not a number of seconds above 0"),
        ("TVC_IMPORT_TIMEOUT", "inf", "note", "=inf is in force"),
        ("TVC_WEIGHTS_PATH", "/", "note", "=/ is in force: it names folders"),
        ("TVC_WEIGHTS_PATH", "/:/misspelt", "problem", "names '/misspelt', which is no folder"),
        ("TVC_WEIGHTS_PATH", "~nobody-here/w", "problem", "names '~nobody-here/w', which is no"),
    ],
)
def test_a_variable_is_described_by_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, level: str, text: str
) -> None:
    monkeypatch.setenv(name, value)
    found = [each for each in doctor._switches(set()) if each.about == name]
    assert any(each.level == level and text in each.text for each in found), found
    assert all(each.advice for each in found if each.level == "problem")
    assert level == "problem" or all(each.level == level for each in found)


def test_every_variable_that_the_core_reads_is_known() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in Path(inspect.getfile(tvc_core)).parent.rglob("*.py")
    )
    read = set(re.findall(r"[\"'](TVC_[A-Z_]+)[\"']", code)) - {"TVC_API", "TVC_KINDS", "TVC_OWNER"}
    assert set(doctor.SWITCHES) == read
