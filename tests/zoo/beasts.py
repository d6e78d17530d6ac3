"""Bad plugins, as data: what each is made of, what becomes of it, and what must be said of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvc_core.testing import write_distribution

HEADER = (
    "from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, "
    "hookimpl\nTVC_API = (1, 0)\n"
)
GATE = "BlockSpec(name='beast_NAME', factory='beast:Gate')"


@dataclass(frozen=True)
class Beast:
    """One bad plugin.

    Args:
        source: of its module; NAME stands for the beast's name.
        status: what `tvc plugins` shows.
        words: part of its error, or of its side effects where it is active.
        doctor: what `tvc doctor` says of a plugin that changes what tvc does not put back.
        change: does more to the metadata's folder.
        slow: takes seconds, since it hangs or brings a large package along.
    """

    source: str | bytes
    status: str = "failed"
    words: str = ""
    doctor: str = ""
    change: Callable[[Path], object] = lambda info: None
    slow: bool = False


def hook(
    body: str = f"return [{GATE}]",
    name: str = "tvc_blocks",
    decorator: str = "@hookimpl",
    arguments: str = "",
) -> str:
    return f"{HEADER}{decorator}\ndef {name}({arguments}):\n    {body}\n"


def kind(name: str = "loss", hook: str = "beast_NAME_losses", arguments: str = "") -> str:
    """Return a plugin that defines a kind."""
    return (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from tvc_core import Kind, Spec, hookimpl, hookspec\nTVC_API = (1, 1)\n"
        "@dataclass(frozen=True, kw_only=True)\nclass LossSpec(Spec):\n"
        f"    kind: ClassVar[str] = {name!r}\n@hookspec\ndef {hook}({arguments}): ...\n"
        f"TVC_KINDS = (Kind(spec=LossSpec, hook={hook}),)\n"
    )


def at_import(code: str) -> str:
    """Return a plugin that works, after running this code."""
    return f"{code}\n{hook()}"


def effect(code: str, words: str, **more: Any) -> Beast:
    return Beast(at_import(code), "active", words, **more)


def hang(source: str) -> Beast:
    return Beast(source, words="did not finish importing within", slow=True)


def metadata(file: str, content: bytes | None, words: str = "cannot be read") -> Beast:
    def change(info: Path) -> None:
        (info / file).unlink()
        if content is not None:
            (info / file).write_bytes(content)

    return Beast(hook(), words=words, change=change)


def entry(value: str, words: str) -> Beast:
    return metadata("entry_points.txt", f"[tvc.plugins]\nbeast = {value}\n".encode(), words)


def _second_module(info: Path) -> None:
    module = info.parent / f"{info.name.partition('-')[0]}_plugin.py"
    (info.parent / f"more_{module.name}").write_bytes(module.read_bytes())
    (info / "entry_points.txt").write_text(
        f"[tvc.plugins]\none = {module.stem}\ntwo = more_{module.stem}\n"
    )


BEASTS: dict[str, Beast] = {
    # errors at import
    "import_error": Beast("import module_that_is_not_there", words="ModuleNotFoundError"),
    "name_error": Beast(HEADER + "undefined", words="NameError"),
    "syntax_error": Beast("def tvc_blocks(:", words="SyntaxError"),
    "not_utf8": Beast(b"name = '\xff\xfe'", words="SyntaxError"),
    "null_bytes": Beast(b"a = 1\0", words="null bytes"),
    "system_exit": Beast(
        "raise SystemExit('licence expired')", words="SystemExit: licence expired"
    ),
    "calls_exit": Beast("import sys; sys.exit()", words="SystemExit"),
    "assertion": Beast("assert 1 == 2, 'arithmetic'", words="AssertionError: arithmetic"),
    "generator_exit": Beast("raise GeneratorExit", words="GeneratorExit"),
    "base_exception": Beast(
        "class Bad(BaseException): pass\nraise Bad('worse')", words="Bad: worse"
    ),
    "unprintable": Beast(
        "class Bad(Exception):\n    def __str__(self): raise RuntimeError\nraise Bad",
        words="its message cannot be printed",
    ),
    "recursion": Beast(HEADER + "def deep(): return deep()\ndeep()", words="RecursionError"),
    "circular": Beast("from beast_circular_plugin import later", words="ImportError"),
    "registry": Beast(
        at_import("from tvc_core import HybridBuilder\nHybridBuilder.list_blocks()"),
        words="make the registry later",
    ),
    # hangs
    "sleeps": hang(at_import("import time; time.sleep(1e9)")),
    "loops": hang(at_import("while True: pass")),
    "stubborn": hang(
        at_import(
            "import time\nwhile True:\n    try: time.sleep(0.05)\n    except BaseException: "
            "print('still here')"
        )
    ),
    "waits": hang(at_import("import threading; threading.Event().wait()")),
    "hook_sleeps": hang(hook("import time; time.sleep(1e9)")),
    # hooks
    "no_hook": Beast(HEADER, words="implements none of the hooks"),
    "misspelt_hook": Beast(hook(name="tvc_block"), words="Did you mean 'tvc_blocks'"),
    "undecorated_hook": Beast(hook(decorator="#"), words="is not decorated"),
    "misspelt_undecorated": Beast(
        hook(name="tvc_backbone", decorator="#"), words="Did you mean 'tvc_backbones'"
    ),
    "hook_takes_argument": Beast(hook(arguments="registry"), words="takes arguments, (registry)"),
    "hook_raises": Beast(hook("raise OSError('no disk')"), words="OSError: no disk"),
    "hook_exits": Beast(hook("raise SystemExit(3)"), words="SystemExit: 3"),
    "gives_none": Beast(hook(f"[{GATE}]"), words="returned NoneType"),
    "gives_dict": Beast(hook(f"return {{'gate': {GATE}}}"), words="returned dict"),
    "gives_text": Beast(hook("return 'gate'"), words="returned str"),
    "gives_generator": Beast(hook(f"yield {GATE}"), words="returned generator"),
    "gives_bad_generator": Beast(
        hook("raise OSError('disk')\n    yield"), words="returned generator"
    ),
    "gives_names": Beast(hook("return ['gate']"), words="not a BlockSpec"),
    "gives_class": Beast(hook("return [BlockSpec]"), words="not a BlockSpec"),
    "gives_other_kind": Beast(
        hook("return [PatchOpSpec(name='gate', factory='a:b')]"), words="not a BlockSpec"
    ),
    "gives_time_bomb": Beast(
        HEADER + "class Bomb(BlockSpec):\n"
        "    def __getattribute__(self, name):\n"
        "        if name == 'category' and ready: raise OSError('bang')\n"
        "        return super().__getattribute__(name)\nready = False\nbomb = Bomb(name='bomb', "
        "factory='a:b')\nready = True\n"
        "@hookimpl\ndef tvc_blocks(): return [bomb]",
        words="not a BlockSpec",
    ),
    # specs
    "bad_name": Beast(
        hook("return [BlockSpec(name='Gate', factory='a:b')]"), words="a name is lower-case"
    ),
    "misspelt_field": Beast(
        hook("return [BlockSpec(nam='gate', factory='a:b')]"),
        words="has no field 'nam'. Did you mean 'name'",
    ),
    "same_name_twice": Beast(hook(f"return [{GATE}, {GATE}]"), words="twice"),
    "same_name_in_two_modules": Beast(
        hook(), words="which another module of the distribution also offers", change=_second_module
    ),
    "name_of_the_core": Beast(
        hook("return [PatchOpSpec(name='wrap', factory='a:b')]", name="tvc_patch_ops"),
        words="a name of tvc-core's own",
    ),
    # API
    "api_missing": Beast(hook().replace("TVC_API = (1, 0)", ""), words="TVC_API is None"),
    "api_text": Beast(hook().replace("(1, 0)", "'1.0'"), words="TVC_API is '1.0'"),
    "api_future": Beast(hook().replace("(1, 0)", "(9, 0)"), "incompatible", "upgrade tvc-core"),
    "api_past": Beast(hook().replace("(1, 0)", "(0, 9)"), "incompatible", "upgrade the plugin"),
    "api_later": Beast(hook().replace("(1, 0)", "(1, 99)"), "incompatible", "upgrade tvc-core"),
    "api_number": Beast(hook().replace("(1, 0)", "1.0"), words="TVC_API is 1.0"),
    "api_three": Beast(hook().replace("(1, 0)", "(1, 0, 0)"), words="TVC_API is (1, 0, 0)"),
    "api_booleans": Beast(
        hook().replace("(1, 0)", "(True, False)"), words="TVC_API is (True, False)"
    ),
    # kinds
    "kind_of_nothing": Beast(kind() + "TVC_KINDS = LossSpec\n", words="not a tuple of Kind"),
    "kind_of_old_api": Beast(
        kind().replace("(1, 1)", "(1, 0)"), words="TVC_KINDS needs plugin API 1.1"
    ),
    "kind_of_the_core": Beast(kind(name="block"), words="defines the kind 'block'"),
    "kind_named_badly": Beast(kind(name="My Loss"), words="not lower-case words"),
    "kind_not_frozen": Beast(
        kind().replace("@dataclass(frozen=True, kw_only=True)\n", ""),
        words="is not decorated as a frozen dataclass",
    ),
    "kind_of_another_class": Beast(
        kind().replace("spec=LossSpec", "spec=dict"), words="not a class derived from Spec"
    ),
    "kind_without_hook": Beast(
        kind().replace("@hookspec\n", ""), words="not a function decorated with hookspec"
    ),
    "kind_with_argument": Beast(kind(arguments="registry"), words="takes arguments"),
    "kind_of_another_owner": Beast(
        kind(hook="acme_losses"), words="a hook carries the name of the distribution"
    ),
    "kind_with_core_hook": Beast(
        kind(hook="tvc_losses"), words="a hook carries the name of the distribution"
    ),
    "kind_with_subclass": Beast(
        kind() + "class Other(LossSpec): pass\n"
        "@hookimpl(specname='beast_NAME_losses')\n"
        "def losses(): return [Other(name='l', factory='a:b')]\n",
        words="not a LossSpec",
    ),
    "unknown_hook": Beast(hook(name="acme_losses"), words="an unknown hook 'acme_losses'"),
    "misspelt_optional": Beast(
        hook(name="tvc_block", decorator="@hookimpl(optionalhook=True)"),
        words="Did you mean 'tvc_blocks'",
    ),
    # metadata
    "no_module": entry("nowhere.plugin", "No module named 'nowhere'"),
    "no_attribute": entry("beast_no_attribute_plugin:Plugin", "has no attribute 'Plugin'"),
    "stdlib_module": entry("calendar", "TVC_API is None"),
    "no_name": metadata("METADATA", b"Version: 1.0\n"),
    "no_metadata": metadata("METADATA", None),
    "metadata_not_text": metadata("METADATA", b"\xff\xfe\x00"),
    "entry_points_not_text": metadata("entry_points.txt", b"\xff\xfe\x00"),
    # they work, and change what can change the bits of a build
    "seeds": effect("import random; random.seed(0)", "random seed of Python"),
    "draws": effect("import random; random.random()", "random seed of Python"),
    "seeds_numpy": effect("import numpy; numpy.random.seed(0)", "random seed of numpy", slow=True),
    "seeds_torch": effect("import torch; torch.manual_seed(0)", "random seed of torch", slow=True),
    "sets_dtype": effect(
        "import torch; torch.set_default_dtype(torch.float64)", "default dtype of torch", slow=True
    ),
    "sets_device": effect(
        "import torch; torch.set_default_device('meta')", "default device of torch", slow=True
    ),
    "stops_gradients": effect(
        "import torch; torch.set_grad_enabled(False)", "gradient mode of torch", slow=True
    ),
    "sets_threads": effect(
        "import torch; torch.set_num_threads(3)", "number of threads of torch", slow=True
    ),
    "is_deterministic": effect(
        "import torch; torch.use_deterministic_algorithms(True)",
        "deterministic algorithms of torch",
        slow=True,
    ),
    "sets_cudnn": effect(
        "import torch; torch.backends.cudnn.benchmark = True", "cuDNN flags of torch", slow=True
    ),
    "sets_kernels": effect(
        "import torch; torch.backends.mkldnn.set_flags(False); "
        "torch.backends.cuda.enable_math_sdp(False)",
        "CPU kernels and attention kernels of torch",
        slow=True,
    ),
    "sets_precision": effect(
        "import torch; torch.set_float32_matmul_precision('medium')",
        "precision of matrix products of torch",
        slow=True,
    ),
    "flushes": effect(
        "import torch; torch.set_flush_denormal(True)", "flushing of denormal numbers", slow=True
    ),
    "sets_autocast": effect(
        "import torch; torch.set_autocast_enabled('cpu', True)", "autocast of torch", slow=True
    ),
    "changes_folder": effect("import os; os.chdir('/')", "working directory"),
    "sets_environment": effect(
        "import os; os.environ['BEAST'] = '1'", "environment variables (BEAST)"
    ),
}

QUIET: dict[str, Beast] = {
    "prints_at_exit": effect(
        "import atexit, os; atexit.register(print, '{'); atexit.register(os.write, 1, b'{')", ""
    ),
    "factory_to_nothing": Beast(
        hook("return [BlockSpec(name='beast_nothing', factory='no_where:Gate')]"), "active"
    ),
    "factory_exits": Beast(
        HEADER + "import sys\n@hookimpl\ndef tvc_blocks():\n"
        "    return [BlockSpec(name='beast_exits', factory='beast_factory_exits_plugin:make')]\n"
        "def make(channels): sys.exit(0)",
        "active",
    ),
}
"""Bad plugins of which nothing is known when they are listed."""


def habit(code: str, words: str, **more: Any) -> Beast:
    return Beast(at_import(code), "active", doctor=words, **more)


HABITS: dict[str, Beast] = {
    "ignores_warnings": habit(
        "import warnings; warnings.simplefilter('ignore')", "warnings filters"
    ),
    "changes_path": habit("import sys; sys.path.insert(0, '/nowhere')", "sys.path"),
    "finds_first": habit(
        "import sys; sys.meta_path.insert(0, type('F', (), {'find_spec': lambda *_: None}))",
        "sys.meta_path",
    ),
    "sets_logging": habit("import logging; logging.basicConfig(level=10)", "logging of the root"),
    "sets_timeout": habit(
        "import socket; socket.setdefaulttimeout(1e-3)", "default timeout of sockets"
    ),
    "sets_locale": habit("import locale; locale.setlocale(locale.LC_ALL, 'C')", "locale"),
    "sets_recursion": habit("import sys; sys.setrecursionlimit(7000)", "recursion limit"),
    "sets_excepthook": habit("import sys; sys.excepthook = print", "sys.excepthook"),
    "stops_collection": habit("import gc; gc.disable()", "garbage collection"),
    "starts_processes": habit(
        "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)",
        "start method of processes",
    ),
    "sets_umask": habit("import os; os.umask(0o777 & ~0o077)", "umask"),
    "sets_alarm": habit("import signal; signal.alarm(10000)", "alarm"),
    "prints": habit("print('{')", "output"),
    "writes": habit("import os; os.write(1, b'{')", "output"),
    "detects_anomalies": habit(
        "import torch; torch.autograd.set_detect_anomaly(True)",
        "anomaly detection of torch",
        slow=True,
    ),
    "moves_hub": habit("import torch; torch.hub.set_dir('/tmp')", "folder of torch.hub", slow=True),
}
"""Plugins that change what is the process's and cannot change the bits of a build. `tvc doctor`,
which loads each in a process of its own, says so.
"""

STREAMS: dict[str, Beast] = {
    "replaces_stdout": habit("import sys, io; sys.stdout = io.StringIO()", "sys.stdout"),
    "closes_stdout": habit("import sys; sys.stdout.close()", "sys.stdout (closed)"),
    "replaces_stderr": habit("import sys, io; sys.stderr = io.StringIO()", "sys.stderr"),
    "replaces_stdin": habit("import sys, io; sys.stdin = io.StringIO()", "sys.stdin"),
    "asks": Beast(at_import("input('your name? ')"), words="EOFError"),
    "sets_signals": Beast(
        at_import("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"),
        words="ValueError: signal only works in main thread",
    ),
}
"""Plugins that would take the streams or signals from the process that loads them, which tvc leaves
alone: these are for `tvc doctor` alone.
"""


def owner_of(name: str) -> str:
    return f"beast-{name.replace('_', '-')}"


def release(folder: Path, name: str, beast: Beast) -> Path:
    """Install a beast into a folder; return the folder of its metadata."""
    source = beast.source if isinstance(beast.source, str) else ""
    info = write_distribution(folder, owner_of(name), source.replace("NAME", name))
    if isinstance(beast.source, bytes):
        (folder / f"beast_{name}_plugin.py").write_bytes(beast.source)
    beast.change(info)
    importlib.invalidate_caches()
    return info
