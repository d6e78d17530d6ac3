"""Loading plugins: time limits, what is put back, what is said once, and what their code may raise
later.
"""

from __future__ import annotations

import importlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from zoo.beasts import BEASTS

import tvc_core
from tvc_core import (
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    PluginError,
    PluginInfo,
    Registry,
    RegistryWarning,
    hookimpl,
)
from tvc_core.errors import BackboneError
from tvc_core.quarantine import process_state
from tvc_core.quarantine.process_state import ProcessState, preserved, run_preserved
from tvc_core.testing import write_distribution

pytestmark = pytest.mark.filterwarnings("ignore:The plugin :tvc_core.RegistryWarning")

GOOD = """
from tvc_core import BlockSpec, hookimpl
TVC_API = (1, 0)
@hookimpl
def tvc_blocks():
    {}
    return [BlockSpec(name="gate", factory="acme:Gate")]
"""

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "0.3")


def info_of(owner: str) -> PluginInfo:
    (info,) = [info for info in Registry().plugins if info.owner == owner]
    return info


# -- time ------------------------------------------------------------------------------------------


HANGS = {
    "sleeps": "import time; time.sleep(1e9)",
    "waits": "import threading as t; t.Event().wait()",
}


@pytest.mark.parametrize("hang", HANGS)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_a_plugin_that_hangs_is_waited_for_once(install: Install, hang: str, where: str) -> None:
    # a name of its own: a plugin that hangs keeps the lock of its module
    name, code = f"{hang}-in-{where}", HANGS[hang]
    code = f"import random; random.seed(3); {code}"
    install(name, f"{code}\n{GOOD.format('')}" if where == "import" else GOOD.format(code))
    install("good", GOOD.format(""))
    before = random.getstate()
    assert Registry().names(BlockSpec) == ["gate"]
    start = time.perf_counter()
    bad = info_of(name)
    assert time.perf_counter() - start < 0.25
    assert bad.status == "failed" and bad.seconds >= 0.3
    assert "did not finish importing within 0.3 s" in bad.error and "TVC_DISABLE" in bad.error
    assert f"{name.replace('-', '_')}_plugin.py" in bad.traceback, "it says where it was left"
    assert bad.side_effects == ("random seed of Python",) and random.getstate() == before


def test_a_finished_loading_leaves_no_thread(install: Install) -> None:
    before = set(sys._current_frames())
    install("good", GOOD.format(""))
    Registry()
    deadline = time.monotonic() + 20
    while set(sys._current_frames()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(sys._current_frames()) - before


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_time_limit_that_is_none_is_said_and_ten_seconds_are_used(
    install: Install, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    install("good", GOOD.format(""))
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", text)
    with pytest.warns(
        RegistryWarning,
        match=f"TVC_IMPORT_TIMEOUT is '{text}', not a number of seconds above 0; 10 is used",
    ):
        assert Registry().names(BlockSpec) == ["gate"]


def test_control_c_ends_the_wait(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "60")
    install("sleeps", "import time; time.sleep(1e9)")
    streams = sys.stdout, sys.stdin, signal.signal
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        Registry()
    assert time.perf_counter() - start < 20
    assert streams == (sys.stdout, sys.stdin, signal.signal)


def test_a_package_that_makes_a_builder_while_it_is_imported_gets_its_own_plugin(
    install: Install,
) -> None:
    info = install("acme", "")
    package = info.parent / "acme_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from tvc_core import HybridBuilder\nnames = HybridBuilder.list_blocks()\n"
    )
    (package / "plugin.py").write_text(GOOD.format(""))
    (info / "entry_points.txt").write_text("[tvc.plugins]\nacme = acme_package.plugin\n")
    try:
        assert importlib.import_module("acme_package").names == ["gate"]
    finally:
        for name in ("acme_package", "acme_package.plugin"):
            sys.modules.pop(name, None)


# -- what is put back ------------------------------------------------------------------------------


@pytest.fixture
def unseeded() -> None:
    """Leave the state that a beast's seed makes, which an earlier test may have set."""
    random.seed()
    numpy.random.seed()
    torch.seed()


LOOKS: dict[str, Callable[[], Any]] = {
    "seeds": random.getstate,
    "draws": random.getstate,
    "seeds_numpy": lambda: numpy.random.get_state()[1].tolist(),
    "seeds_torch": lambda: torch.get_rng_state().tolist(),
    "sets_dtype": torch.get_default_dtype,
    "sets_device": lambda: torch.empty(0).device,
    "stops_gradients": torch.is_grad_enabled,
    "sets_threads": torch.get_num_threads,
    "is_deterministic": torch.are_deterministic_algorithms_enabled,
    "sets_cudnn": lambda: torch.backends.cudnn.benchmark,
    "sets_kernels": lambda: (torch.backends.mkldnn.enabled, torch.backends.cuda.math_sdp_enabled()),
    "sets_precision": torch.get_float32_matmul_precision,
    "flushes": lambda: (torch.tensor([1e-310], dtype=torch.float64) / 2).tolist(),
    "sets_autocast": lambda: torch.is_autocast_enabled("cpu"),
    "changes_folder": os.getcwd,
    "sets_environment": lambda: os.environ.get("BEAST"),
}


def test_every_setting_has_a_beast_and_a_look() -> None:
    assert set(LOOKS) == {name for name, beast in BEASTS.items() if beast.status == "active"}
    words = {beast.words.partition(" (")[0] for beast in BEASTS.values()}
    assert {setting.words for setting in process_state._SETTINGS} <= words


def code_of(name: str) -> str:
    """Return what a beast of this table does, without the plugin around it."""
    source = BEASTS[name].source
    assert isinstance(source, str)
    return source.partition("\n")[0]


@pytest.mark.usefixtures("unseeded")
@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_what_a_plugin_changes_is_put_back_and_named(
    install: Install, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "60")
    code, look = code_of(name), LOOKS[name]
    install("bad", f"{code}\n{GOOD.format('')}" if where == "import" else GOOD.format(code))
    before = look()
    bad = info_of("bad")
    assert look() == before
    assert bad.status == "active" and BEASTS[name].words in bad.side_effects
    # which makes torch import more of itself
    assert len(bad.side_effects) == 1 or name == "is_deterministic"
    assert info_of("bad") == bad, "it is remembered"


@pytest.mark.usefixtures("unseeded")
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("name", LOOKS)
def test_code_that_is_used_leaves_as_little_behind(name: str, raises: bool) -> None:
    code, look = code_of(name), LOOKS[name]

    def factory() -> int:
        exec(code)
        if raises:
            raise OSError("disk")
        return 7

    kept, before = ProcessState(), look()
    try:
        for call in (lambda: run_preserved(factory), lambda: _inside(factory)):
            if raises:
                with pytest.raises(OSError, match="disk"):
                    call()
            else:
                assert call() == 7
            changed = look() != before
            assert changed is (not raises and "seed" in BEASTS[name].words)
    finally:
        kept.put_back()


def _inside(factory: Callable[[], int]) -> int:
    with preserved():
        return factory()


def test_what_the_user_sets_meanwhile_stays(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin takes long to load, in another thread; the main thread sets a handler and a stream,
    and both are what was set.
    """
    install("slow", "import time; time.sleep(0.6)\n" + GOOD.format(""))
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "20")
    thread = threading.Thread(target=Registry)
    before, stdout = signal.getsignal(signal.SIGUSR1), sys.stdout

    def handler(*_: object) -> None: ...

    try:
        thread.start()
        time.sleep(0.2)
        assert sys.stdout is stdout
        assert signal.signal(signal.SIGUSR1, handler) is before
        sys.stdout = io.StringIO()
        print("mine")
        thread.join()
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert sys.stdout.getvalue() == "mine\n"
        assert info_of("slow").side_effects == ()
    finally:
        sys.stdout = stdout
        signal.signal(signal.SIGUSR1, before)


def test_a_plugin_that_prints_prints(install: Install, capfd: pytest.CaptureFixture[str]) -> None:
    install("loud", "print('hello')\n" + GOOD.format(""))
    assert info_of("loud").status == "active"
    assert capfd.readouterr().out == "hello\n"


# -- threads, forks, interrupts --------------------------------------------------------------------


def test_looks_that_overlap_share_what_they_go_back_to() -> None:
    """Another thread's passing change is not what this one goes back to, and no generator is
    rewound under a thread that draws from it.
    """
    begun, looked, ended = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        def factory() -> None:
            torch.set_default_dtype(torch.float64)
            begun.set()
            looked.wait(20)
            raise OSError

        with pytest.raises(OSError):
            run_preserved(factory)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(20)
    state = ProcessState()
    drawn = torch.rand(4)
    looked.set()
    thread.join()
    again = torch.rand(4)
    state.put_back()
    assert ended.is_set() and torch.get_default_dtype() is torch.float32
    assert not torch.equal(drawn, again) and not torch.equal(again, torch.rand(4))


def test_two_threads_list_and_each_culprit_is_its_own(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "30")
    for number in range(6):
        seed = "import random; random.seed(3)\n" if number == 3 else ""
        source = f"import time; time.sleep(0.02)\n{seed}{GOOD.format('')}"
        install(f"acme-{number}", source.replace('"gate"', f'"gate{number}"'))
    found: list[Registry] = []
    threads = [threading.Thread(target=lambda: found.append(Registry())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for registry in found:
        assert len(registry.names(BlockSpec)) == 6
        effects = {info.owner for info in registry.plugins if info.side_effects}
        assert effects <= {"acme-3"}


IN_A_PROCESS = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")
from tvc_core import Registry
"""


def run_python(folder: Path, code: str, only: str, **more: str) -> str:
    environment = {**os.environ, "PYTHONPATH": path_with(folder), "TVC_ONLY": only, **more}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.parametrize("sleep", ["1.5", "1e9"], ids=["slow", "hangs"])
def test_a_child_that_is_forked_while_a_thread_lists_lists(tmp_path: Path, sleep: str) -> None:
    write_distribution(
        tmp_path, "acme-slow", f"import time; time.sleep({sleep})\n{GOOD.format('')}"
    )
    write_distribution(tmp_path, "acme-good", GOOD.format("").replace('"gate"', '"door"'))
    code = """
thread = threading.Thread(target=Registry); thread.start(); time.sleep(0.3)
child = os.fork()
names = Registry().names("block")
if child == 0:
    os._exit(0 if "door" in names and ("gate" in names or SLEEP > 9) else 1)
thread.join()
print(os.waitpid(child, 0)[1], names)
"""
    out = run_python(
        tmp_path, code.replace("SLEEP", sleep), "acme-slow,acme-good", TVC_IMPORT_TIMEOUT="4"
    )
    assert out == ("0 ['door', 'gate']\n" if sleep == "1.5" else "0 ['door']\n")


@pytest.mark.parametrize(
    "every", [pytest.param(19, id="some"), pytest.param(3, id="most", marks=pytest.mark.sweep)]
)
def test_an_interrupt_at_any_line_leaves_nothing_behind(tmp_path: Path, every: int) -> None:
    """At many of the lines that run in tvc_core while a registry is made, of any function."""
    for name in ("acme-a", "acme-b"):
        source = "import os, random; random.seed(1); os.environ['BEAST'] = '1'\n" + GOOD.format("")
        write_distribution(tmp_path, name, source.replace('"gate"', f'"{name[-1]}"'))
    code = """
import random, signal, tvc_core
from tvc_core.registry import discovery
home, held = os.path.dirname(tvc_core.__file__), []

def fresh():
    for table in (discovery._LOADED, discovery._COMPLETED):
        table.clear()
    for name in "ab":
        sys.modules.pop(f"acme_{name}_plugin", None)

def interrupted(number):
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(home):
            return None
        seen += event == "line"
        if event == "line" and seen == number:
            raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try:
        Registry()
    except KeyboardInterrupt as error:
        held.append(error)  # its frames live on
    finally:
        sys.settrace(None)
    return seen

fresh()
total = interrupted(0)
streams = sys.stdin, sys.stdout, sys.stderr, signal.signal, signal.getsignal(signal.SIGINT)
for number in range(1, total, EVERY):
    fresh()
    random.seed(77)
    before = random.getstate()
    interrupted(number)
    assert random.getstate() == before and "BEAST" not in os.environ, number
    assert set("ab") <= set(Registry().names("block")), number
    now = sys.stdin, sys.stdout, sys.stderr, signal.signal, signal.getsignal(signal.SIGINT)
    assert now == streams
print(total > 500, len(held) > total // EVERY * 0.9)
"""
    code = code.replace("EVERY", str(every))
    assert run_python(tmp_path, code, "acme-a,acme-b") == "True True\n"


def test_a_plugin_that_hangs_does_not_change_things_later(install: Install) -> None:
    """After it was given up, what it changes cannot be told from what others change; so it is not
    put back over what the user has set since.
    """
    install("late", "import random, time; random.seed(1); time.sleep(1.2)\n" + GOOD.format(""))
    random.seed(5)
    before = random.getstate()
    assert "did not finish" in info_of("late").error
    assert random.getstate() == before, "what it did until then is put back"
    random.seed(6)
    since = random.getstate()
    time.sleep(1.5)
    assert random.getstate() == since


def test_a_sound_plugin_and_all_of_ours_have_no_side_effects(install: Install) -> None:
    install("good", GOOD.format(""))
    good = info_of("good")
    assert good.side_effects == () and 0 < good.seconds < 5
    code = (
        "from tvc_core import Registry; print([i.owner for i in Registry().plugins if "
        "i.side_effects or i.error])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_module_that_was_loaded_again_is_asked_again(install: Install) -> None:
    info = install("acme", GOOD.format(""))
    assert Registry().names(BlockSpec) == ["gate"]
    (info.parent / "acme_plugin.py").write_text(GOOD.format("").replace('"gate"', '"another"'))
    importlib.invalidate_caches()
    importlib.reload(sys.modules["acme_plugin"])
    assert Registry().names(BlockSpec) == ["another"]


# -- what is said ----------------------------------------------------------------------------------


def test_each_culprit_is_named_by_one_warning_a_process(install: Install) -> None:
    install("good", GOOD.format(""))
    install("broken", "raise OSError('disk')")
    install(
        "noisy", "import os; os.environ['BEAST'] = '1'\n" + GOOD.format("").replace("gate", "door")
    )
    with pytest.warns(RegistryWarning) as caught:
        Registry()
        HybridBuilder.list_blocks()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "The plugin broken 1.0 (failed) offers nothing: OSError: disk" in messages[0]
    assert (
        "The plugin noisy 1.0 changed process-wide state while it was imported; tvc restored it: "
        "environment" in messages[1]
    )
    assert caught[0].filename == __file__


def test_the_name_of_a_distribution_that_cannot_be_an_owner_is_a_fault(install: Install) -> None:
    info = install("odd", GOOD.format(""))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a b:c\nVersion: 1.0\n")
    assert (
        info_of("a b:c").error
        == "the name of its distribution is not made of letters, digits and '-'"
    )


def test_the_core_has_its_version() -> None:
    (core,) = Registry(installed=False).plugins
    declared = re.search(r'^version = "(.+)"$', PROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    assert declared and (core.owner, core.version) == ("tvc-core", declared[1])


# -- what their code raises later ------------------------------------------------------------------


def _raises(error: BaseException) -> Callable[..., Any]:
    def factory(*_: Any, **__: Any) -> Any:
        raise error

    return factory


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), GeneratorExit(), AssertionError("no"), UnprintableError()],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_factory_raises_is_an_error_that_names_its_plugin(error: BaseException) -> None:
    class Lab:
        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="gate", factory=_raises(error))]

        @hookimpl
        def tvc_backbones(self) -> list[BackboneSpec]:
            return [BackboneSpec(name="net", factory=_raises(error), stages=("a",), head="b")]

    builder = HybridBuilder(registry=Registry([Lab()], installed=False))
    with pytest.raises(tvc_core.TvcError, match=f"lab:gate.*{type(error).__name__}"):
        builder.create_block("gate", 8)
    with pytest.raises(BackboneError, match=f"lab:net.*{type(error).__name__}"):
        builder.from_backbone("net", None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("Gate = 3", "is of type int, which cannot be called"),
    ],
    ids=["module that exits", "attribute that is no factory"],
)
def test_a_factory_that_cannot_be_had_names_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "acme_gates.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_gates", raising=False)

    class Lab:
        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="gate", factory="acme_gates:Gate")]

    with pytest.raises(PluginError, match=f"'lab:gate'.*{words}.*fault of the distribution 'lab'"):
        HybridBuilder(registry=Registry([Lab()], installed=False)).create_block("gate", 8)
    sys.modules.pop("acme_gates", None)
