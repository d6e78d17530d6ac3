"""Defective registration modules: source texts, and the check that must catch each."""

from __future__ import annotations

HEALTHY = """
from tvc_core import BlockSpec, InitializerSpec, hookimpl

TVC_API = (1, 0)


@hookimpl
def tvc_blocks():
    return [BlockSpec(name="gate", factory="tvc_core.testing.toy_networks:Gate", gated=True)]


@hookimpl
def tvc_initializers():
    return [InitializerSpec(name="ones", factory="torch.nn.init:ones_")]
"""


def changed(old: str, new: str) -> str:
    """Return the healthy source with one change."""
    assert HEALTHY.count(old) == 1, old
    return HEALTHY.replace(old, new)


_HOOK = "@hookimpl\ndef tvc_initializers"
_LIST = 'return [InitializerSpec(name="ones", factory="torch.nn.init:ones_")]'

DEFECTS = {
    "import error": (
        changed("TVC_API", "import no_such_module\nTVC_API"),
        "plugin_imports",
        "no_such_module",
    ),
    "leaves the process": (
        changed("TVC_API", "raise SystemExit(3)\nTVC_API"),
        "plugin_imports",
        "SystemExit",
    ),
    "syntax error": (changed("TVC_API =", "TVC_API = = "), "plugin_imports", "SyntaxError"),
    "imports numpy": (
        changed("TVC_API", "import numpy\nTVC_API"),
        "plugin_light_import",
        "imports of numpy",
    ),
    "imports numpy in a hook": (
        changed(_LIST, f"import numpy\n    {_LIST}"),
        "plugin_light_import",
        "imports of numpy",
    ),
    "sets a seed": (
        changed("TVC_API", "import random\nrandom.seed(0)\nTVC_API"),
        "plugin_side_effects",
        "random seed",
    ),
    "prints": (
        changed("TVC_API", "print('acme is here')\nTVC_API"),
        "plugin_side_effects",
        "output",
    ),
    "filters warnings": (
        changed("TVC_API", "import warnings\nwarnings.simplefilter('ignore')\nTVC_API"),
        "plugin_side_effects",
        "warnings filters",
    ),
    "no API": (changed("TVC_API = (1, 0)\n", ""), "plugin_api_version", "0 of them"),
    "computed API": (
        changed("TVC_API = (1, 0)", "import tvc_core\nTVC_API = tvc_core.API_VERSION"),
        "plugin_api_version",
        "literal",
    ),
    "API from the future": (changed("(1, 0)", "(9, 0)"), "plugin_api_version", "(9, 0)"),
    "misspelt hook": (
        changed("tvc_initializers", "tvc_initialisers"),
        "plugin_hooks",
        "Did you mean 'tvc_initializers'",
    ),
    "undecorated hook": (changed(_HOOK, "def tvc_initializers"), "plugin_hooks", "hookimpl"),
    "a hook with an argument": (
        changed("tvc_initializers()", "tvc_initializers(registry)"),
        "plugin_hooks",
        "(registry)",
    ),
    "no hook": ("TVC_API = (1, 0)\n", "plugin_hooks", "implements none of the hooks"),
    "an optional hook that is misspelt": (
        changed(_HOOK, "@hookimpl(optionalhook=True)\ndef tvc_initialiser"),
        "plugin_hooks",
        "Did you mean 'tvc_initializers'",
    ),
    "a kind without a tuple": (
        changed("TVC_API", "TVC_KINDS = 3\nTVC_API").replace("(1, 0)", "(1, 1)"),
        "plugin_hooks",
        "not a tuple of Kind",
    ),
    "a kind of an old API": (
        changed(
            "TVC_API",
            "from dataclasses import dataclass\nfrom tvc_core import Kind, Spec, hookspec\n"
            "@dataclass(frozen=True)\nclass Loss(Spec):\n    kind = 'loss'\n@hookspec\n"
            "def acme_broken_losses(): ...\n"
            "TVC_KINDS = (Kind(spec=Loss, hook=acme_broken_losses),)\nTVC_API",
        ),
        "plugin_hooks",
        "TVC_KINDS needs plugin API 1.1",
    ),
    "signal handlers": (
        changed("TVC_API", "import signal as s\ns.signal(s.SIGUSR1, lambda *_: None)\nTVC_API"),
        "plugin_side_effects",
        "signal handlers",
    ),
    "a hook that raises": (changed(_LIST, "raise KeyError('ones')"), "plugin_specs", "KeyError"),
    "a hook that returns nothing": (changed(_LIST, "pass"), "plugin_specs", "not a list"),
    "another kind of spec": (
        changed("InitializerSpec(name", "BlockSpec(name"),
        "plugin_specs",
        "not a InitializerSpec",
    ),
    "a name of the core's": (changed('"ones"', '"zero"'), "plugin_specs", "tvc-core's own"),
    "a name that cannot be": (changed('"ones"', '"Ones"'), "plugin_specs", "lower-case"),
    "a name twice": (
        changed("def tvc_blocks():", "def tvc_blocks():\n    return _two()\n    def _(): pass")
        + "\n\ndef _two():\n    return [BlockSpec(name='gate', "
        "factory='torch.nn:Identity')] * 2\n",
        "plugin_specs",
        "twice",
    ),
    "a list that grows": (
        changed(
            _LIST,
            "_FOUND.append(InitializerSpec(name=f'ones{len(_FOUND)}', "
            "factory='torch.nn.init:ones_'))\n"
            "    return _FOUND",
        )
        + "\n\n_FOUND = []\n",
        "plugin_specs",
        "same specs",
    ),
    "a factory that is not there": (
        changed("init:ones_", "init:onez_"),
        "plugin_factories",
        "onez_",
    ),
    "another entry that is not there": (
        changed(_HOOK, "@hookimpl\ndef tvc_backbones():\n    return _family()\n\n\n" + _HOOK)
        + "\n\ndef _family():\n    from tvc_core import BackboneFamilySpec as Family\n"
        "    return [Family(name='nets', factory='builtins:dict', members='builtins:mebmers')]\n",
        "plugin_factories",
        "mebmers",
    ),
    "a factory in a module that is not there": (
        changed("torch.nn.init:", "torch.nn.inti:"),
        "plugin_factories",
        "inti",
    ),
    "a factory that cannot be called": (
        changed("torch.nn.init:ones_", "torch.nn.init:math"),
        "plugin_factories",
        "called",
    ),
}
"""What is wrong: source, check that fails, a piece of its message."""
