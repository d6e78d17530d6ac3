"""Bad plugins, as data: what each is made of, what becomes of it, and what must be said of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
        change: does more to the metadata's folder.
        slow: takes seconds, since it hangs or brings a large package along.
    """

    source: str | bytes
    status: str = "failed"
    words: str = ""
    change: Callable[[Path], object] = lambda info: None
    slow: bool = False


def hook(
    body: str = f"return [{GATE}]",
    name: str = "tvc_blocks",
    decorator: str = "@hookimpl",
    arguments: str = "",
) -> str:
    return f"{HEADER}{decorator}\ndef {name}({arguments}):\n    {body}\n"


def at_import(code: str) -> str:
    """Return a plugin that works, after running this code."""
    return f"{code}\n{hook()}"


def effect(code: str, words: str, **more: bool) -> Beast:
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
    "asks": Beast(at_import("input('your name? ')"), words="EOFError"),
    # hooks
    "no_hook": Beast(HEADER, words="implements none of the hooks"),
    "misspelt_hook": Beast(hook(name="tvc_block"), words="Did you mean 'tvc_blocks'"),
    "undecorated_hook": Beast(hook(decorator="#"), words="is not decorated"),
    "misspelt_undecorated": Beast(
        hook(name="tvc_backbone", decorator="#"), words="Did you mean 'tvc_backbones'"
    ),
    "hook_takes_argument": Beast(hook(arguments="registry"), words="{'registry'}"),
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
        words="OSError: bang",
    ),
    # specs
    "bad_name": Beast(
        hook("return [BlockSpec(name='Gate', factory='a:b')]"), words="a name is lower-case"
    ),
    "misspelt_field": Beast(
        hook("return [BlockSpec(nam='gate', factory='a:b')]"),
        words="unexpected keyword argument 'nam'",
    ),
    "same_name_twice": Beast(hook(f"return [{GATE}, {GATE}]"), words="twice"),
    "same_name_in_two_modules": Beast(
        hook(), words="which another module of the distribution offers", change=_second_module
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
    # metadata
    "no_module": entry("nowhere.plugin", "No module named 'nowhere'"),
    "no_attribute": entry("beast_no_attribute_plugin:Plugin", "has no attribute 'Plugin'"),
    "stdlib_module": entry("calendar", "TVC_API is None"),
    "no_name": metadata("METADATA", b"Version: 1.0\n"),
    "no_metadata": metadata("METADATA", None),
    "metadata_not_text": metadata("METADATA", b"\xff\xfe\x00"),
    "entry_points_not_text": metadata("entry_points.txt", b"\xff\xfe\x00"),
    # they work, and change what is not theirs
    "seeds": effect("import random; random.seed(0)", "random seed of Python"),
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
    "changes_folder": effect("import os; os.chdir('/')", "working directory"),
    "sets_environment": effect(
        "import os; os.environ['BEAST'] = '1'", "environment variables (BEAST)"
    ),
    "sets_signals": effect(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal handlers"
    ),
    "ignores_warnings": effect(
        "import warnings; warnings.simplefilter('ignore')", "warnings filters"
    ),
    "changes_path": effect("import sys; sys.path.insert(0, '/nowhere')", "sys.path"),
    "sets_logging": effect("import logging; logging.basicConfig(level=10)", "logging of the root"),
    "sets_timeout": effect(
        "import socket; socket.setdefaulttimeout(1e-3)", "default timeout of sockets"
    ),
    "sets_locale": effect("import locale; locale.setlocale(locale.LC_ALL, 'C')", "locale"),
    "sets_recursion": effect("import sys; sys.setrecursionlimit(7000)", "recursion limit"),
    "sets_excepthook": effect("import sys; sys.excepthook = print", "sys.excepthook"),
    "prints": effect("print('{')", "output"),
    "replaces_stdout": effect("import sys, io; sys.stdout = io.StringIO()", "sys.stdout"),
    "closes_stdout": effect("import sys; sys.stdout.close()", "sys.stdout"),
    "replaces_stderr": effect("import sys, io; sys.stderr = io.StringIO()", "sys.stderr"),
}

QUIET: dict[str, Beast] = {
    "writes": effect("import os; os.write(1, b'{')", ""),
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
