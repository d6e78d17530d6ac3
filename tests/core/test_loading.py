"""Loading plugins: time limits, what is put back, what is said once, and what their code may raise
later.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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

Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "0.3")


def info_of(owner: str) -> PluginInfo:
    (info,) = [info for info in Registry().plugins if info.owner == owner]
    return info


# -- time ------------------------------------------------------------------------------------------


HANGS = {"sleeps": "import time; time.sleep(1e9)", "loops": "while True: pass"}


@pytest.mark.parametrize("hang", HANGS)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_nobody_waits_for_a_plugin_that_hangs_and_never_twice(
    install: Install, hang: str, where: str
) -> None:
    # a name of its own: who hangs keeps the lock of its module
    name, code = f"{hang}-in-{where}", HANGS[hang]
    install(name, f"{code}\n{GOOD.format('')}" if where == "import" else GOOD.format(code))
    install("good", GOOD.format(""))
    assert Registry().names(BlockSpec) == ["gate"]
    start = time.perf_counter()
    bad = info_of(name)
    assert time.perf_counter() - start < 0.25
    assert bad.status == "failed" and bad.seconds >= 0.3
    assert "did not finish importing within 0.3 s" in bad.error and "TVC_DISABLE" in bad.error
    assert f"{name.replace('-', '_')}_plugin.py" in bad.traceback, "it says where it was left"


def test_a_loop_is_ended_and_a_finished_loading_leaves_no_thread(install: Install) -> None:
    before = threading.active_count()
    install("loops", "while True: pass")
    Registry()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


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


def test_control_c_ends_the_wait_and_everything_is_put_back(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
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

EFFECTS = {
    "random seed of Python": ("import random; random.seed(27182)", random.getstate),
    "random seed of torch": (
        "import torch; torch.manual_seed(27182)",
        lambda: torch.get_rng_state().tolist(),
    ),
    "default dtype of torch": (
        "import torch; torch.set_default_dtype(torch.float64)",
        torch.get_default_dtype,
    ),
    "default device of torch": (
        "import torch; torch.set_default_device('meta')",
        lambda: torch.empty(0).device,
    ),
    "gradient mode of torch": (
        "import torch; torch.set_grad_enabled(False)",
        torch.is_grad_enabled,
    ),
    "number of threads of torch": ("import torch; torch.set_num_threads(3)", torch.get_num_threads),
    "deterministic algorithms of torch": (
        "import torch; torch.use_deterministic_algorithms(True)",
        torch.are_deterministic_algorithms_enabled,
    ),
    "cuDNN flags of torch": (
        "import torch; torch.backends.cudnn.benchmark = True",
        lambda: (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
    ),
    "CPU kernels and attention kernels of torch": (
        "import torch; torch.backends.mkldnn.set_flags(False); "
        "torch.backends.cuda.enable_math_sdp(False)",
        lambda: (torch.backends.mkldnn.enabled, torch.backends.cuda.math_sdp_enabled()),
    ),
    "garbage collection": ("import gc; gc.disable()", gc.isenabled),
    "start method of processes": (
        "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)",
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "working directory": ("import os; os.chdir('/')", os.getcwd),
    "os.environ": ("import os; os.environ = dict(os.environ)", lambda: id(os.environ)),
    "sys.meta_path": (
        "import sys; sys.meta_path.insert(0, type('Finder', (), {'find_spec': lambda *_: None}))",
        lambda: sys.meta_path[0],
    ),
    "environment variables (BEAST)": (
        "import os; os.environ['BEAST'] = '1'",
        lambda: os.environ.get("BEAST"),
    ),
    "signal handlers": (
        "import signal; signal.signal(signal.SIGINT, print)",
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "warnings filters": (
        "import warnings; warnings.simplefilter('ignore')",
        lambda: list(warnings.filters),
    ),
    "sys.path": ("import sys; sys.path.append('/nowhere')", lambda: list(sys.path)),
    "recursion limit": ("import sys; sys.setrecursionlimit(7000)", sys.getrecursionlimit),
    "sys.stdout": ("import sys, io; sys.stdout = io.StringIO()", lambda: sys.stdout),
    "output": ("print('hello')", lambda: sys.stdout),
}


@pytest.mark.parametrize("words", EFFECTS)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_what_a_plugin_changes_is_put_back_and_named(
    install: Install, monkeypatch: pytest.MonkeyPatch, words: str, where: str
) -> None:
    monkeypatch.setenv("TVC_IMPORT_TIMEOUT", "60")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    code, look = EFFECTS[words]
    install("bad", f"{code}\n{GOOD.format('')}" if where == "import" else GOOD.format(code))
    before = look()
    registry = Registry()
    assert look() == before
    (bad,) = [info for info in registry.plugins if info.owner == "bad"]
    assert bad.status == "active" and words in bad.side_effects
    # which makes torch import more of itself
    assert len(bad.side_effects) == 1 or "deterministic" in words
    assert info_of("bad") == bad, "it is remembered"


def test_a_finder_of_modules_that_stands_last_is_nobodys_loss(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    code = "import sys; sys.meta_path.append(type('Finder', (), {'find_spec': lambda *_: None}))"
    install("finder", f"{code}\n{GOOD.format('')}")
    assert info_of("finder").side_effects == () and sys.meta_path[-1].__name__ == "Finder"


def test_an_alarm_is_turned_off_and_the_users_own_is_not(install: Install) -> None:
    rest, handler = (
        signal.setitimer(signal.ITIMER_REAL, 0)[0],
        signal.signal(signal.SIGALRM, signal.SIG_IGN),
    )
    try:
        install("alarm", "import signal; signal.alarm(1000)\n" + GOOD.format(""))
        assert (
            info_of("alarm").side_effects == ("alarm",)
            and signal.getitimer(signal.ITIMER_REAL)[0] == 0
        )
        signal.alarm(500)
        install("other", GOOD.format("").replace("gate", "door"))
        assert (
            info_of("other").side_effects == ()
            and 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        )
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, rest)


@pytest.mark.parametrize(
    "code",
    [
        "sys.stderr.close()",
        "sys.__stderr__.close(); sys.__stdout__.close()",
        "sys.stderr = io.TextIOWrapper(sys.stderr.buffer)",
    ],
)
def test_nobody_loses_the_standard_streams(tmp_path: Path, code: str) -> None:
    write_distribution(tmp_path, "closes", f"import io, sys\n{code}\n" + GOOD.format(""))
    look = (
        "import sys; from tvc_core import Registry; Registry(); print('out'); print('err', "
        "file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TVC_ONLY": "closes"}
    done = subprocess.run(
        [sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "out\n" and done.stderr.endswith("err\n")


def test_what_another_thread_prints_is_not_the_plugins(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import threading; thread = threading.Thread(target=print, args=('tick',)); "
        "thread.start(); thread.join()"
    )
    install("bad", f"{code}\n{GOOD.format('')}")
    assert info_of("bad").side_effects == ()
    assert capsys.readouterr() == ("tick\n", "")


def test_what_it_prints_goes_to_stderr(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("bad", "print('hello')\n" + GOOD.format(""))
    Registry()
    assert capsys.readouterr() == ("", "hello\n")
    install("keeps", "import sys; kept = sys.stdout\n" + GOOD.format("").replace("gate", "door"))
    Registry()
    print("later", file=sys.modules["keeps_plugin"].kept)
    assert capsys.readouterr() == ("", "later\n")


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
        "The plugin noisy 1.0 changes on import what is not its own, which was put back: "
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
    assert (core.owner, core.version) == ("tvc-core", tvc_core.__version__)


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


# -- speed -----------------------------------------------------------------------------------------


def test_a_hundred_plugins_are_listed_in_a_fraction_of_a_second_more(tmp_path: Path) -> None:
    """The issue asks for 0.15 s; on a busy machine of a test run, three times that is what must
    never be exceeded.
    """
    for number in range(100):
        write_distribution(
            tmp_path, f"acme-{number}", GOOD.format("").replace('"gate"', f'"gate{number}"')
        )
    code = "from tvc_core import HybridBuilder; print(len(HybridBuilder.list_blocks()))"

    def seconds(path: str, least: int) -> float:
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) >= least
        return time.perf_counter() - start

    seconds(str(tmp_path), 100)  # writes the bytecode
    more = [seconds(str(tmp_path), 100) - seconds("", 1) for _ in range(5)]
    assert statistics.median(more) < 0.45
