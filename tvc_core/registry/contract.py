"""What a plugin must look like: the API that it states, the kinds that it defines, and its hooks.

pluggy marks hooks. It does not call them, since its answers to a misspelt, undecorated or empty
hook are not ours (docs/explanation/architecture.md, "The hook layer").
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .. import builtin
from ..errors import did_you_mean, join_names, short_repr
from ..hookspecs import API_VERSION, KINDS
from ..quarantine.loading import Fault
from ..specs import Kind, Spec

__all__ = ["HOOKS", "Fault", "Hook", "check_hooks", "collect", "examine", "hooks_of"]

CORE_OWNER = "tvc-core"
_NEAR = 0.85
"""How alike two names of hooks must be for one to be taken for the other misspelt."""


class Hook(NamedTuple):
    """One hook as a plugin implements it; `name` is empty for a LocalPlugin, which has specs of any
    kind.
    """

    name: str
    function: Callable[[], Any]
    optional: bool = False


Contents = tuple[tuple[int, int] | None, tuple[Kind, ...], list[Hook]]
"""What a plugin says of itself, before a hook is called: its API, its kinds and its hooks."""


def hooks_of(kinds: Iterable[Kind]) -> dict[str, tuple[type[Spec], ...]]:
    """Return what each hook may return, given the kinds that there are."""
    # Several kinds may share a hook: backbones and families of them both come from `tvc_backbones`,
    # since a plugin that has both should not need two functions.
    found: dict[str, tuple[type[Spec], ...]] = {}
    for kind in kinds:
        name = kind.hook.__name__
        found[name] = (*found.get(name, ()), kind.spec)
    return found


HOOKS = hooks_of(KINDS)
"""The core's hooks, and the classes of specs that each may return."""


_RESERVED = {
    (type(spec), spec.name) for spec in (*builtin.tvc_patch_ops(), *builtin.tvc_initializers())
}
"""The classes and names of the core's specs, which no plugin may offer."""


def examine(plugin: Any, owner: str, *, api_required: bool = True) -> Contents:
    """Return what a plugin says of itself.

    Raises:
        Fault: it breaks a rule.
    """
    api = _api_of(plugin, required=api_required)
    kinds, hooks = _kinds_of(plugin, owner, api), _hooks_in(plugin)
    if not hooks and not kinds:
        none = f"implements none of the hooks {join_names(HOOKS)}"
        raise Fault(f"{none}; the entry point may name the wrong module")
    return api, kinds, hooks


def _api_of(plugin: Any, *, required: bool) -> tuple[int, int] | None:
    # Compared before anything else of the plugin is looked at: a plugin that was written for
    # another API may break any later rule, and "upgrade tvc-core" is a better answer than the first
    # of these faults.
    api = getattr(plugin, "TVC_API", None)
    if api is None and not required:
        return None
    if not (isinstance(api, tuple) and [type(part) for part in api] == [int, int]):
        example = "a plugin module states the API it was written for, such as TVC_API = (1, 0)"
        raise Fault(f"TVC_API is {short_repr(api)}; {example}")
    if api[0] != API_VERSION[0] or api > API_VERSION:
        written, here = (".".join(map(str, version)) for version in (api, API_VERSION))
        upgrade = "tvc-core" if api > API_VERSION else "the plugin"
        message = f"written for plugin API {written}, this tvc-core has {here}; upgrade {upgrade}"
        raise Fault(message, status="incompatible")
    return api


def _kinds_of(plugin: Any, owner: str, api: tuple[int, int] | None) -> tuple[Kind, ...]:
    kinds = getattr(plugin, "TVC_KINDS", ())
    if not isinstance(kinds, (tuple, list)) or not all(isinstance(kind, Kind) for kind in kinds):
        raise Fault(f"TVC_KINDS is {short_repr(kinds)}, not a tuple of Kind")
    if kinds and api is not None and api < (1, 1):
        raise Fault(f"TVC_KINDS needs plugin API 1.1, and TVC_API is {api}")
    # A hook of a plugin's own kind is a name that other distributions implement. So it begins with
    # the name of the distribution that defines it: two that define a kind of the same name cannot
    # be mixed up, and a misspelt hook of the core's cannot pass for one of another kind.
    taken = {word: "tvc-core's own" for kind in KINDS for word in (kind.name, kind.plural)}
    prefix, core = owner.replace("-", "_"), tuple(kind.spec for kind in KINDS)
    for kind in kinds:
        hook, words = kind.hook.__name__, [kind.name, kind.plural]
        bases = [spec.kind for spec in core if issubclass(kind.spec, spec)]
        if whose := next((taken[word] for word in words + bases if word in taken), ""):
            raise Fault(f"defines the kind {kind.name!r}, which is {whose}; choose another")
        whole = hook == prefix and not hook.startswith("tvc_")
        if not whole and (prefix == "tvc" or not hook.startswith(f"{prefix}_")):
            raise Fault(
                f"the hook of its kind {kind.name!r} is {hook!r}; a hook carries the name of the "
                f"distribution that defines it: '{prefix}_{kind.plural}'"
            )
        _check_takes_nothing(f"the hook {hook!r} of its kind {kind.name!r}", kind.hook)
        taken |= dict.fromkeys(words, f"also, or in the plural, its kind {kind.name!r}")
    return tuple(kinds)


def _check_takes_nothing(what: str, hook: Callable[..., Any]) -> None:
    if (signature := inspect.signature(hook)).parameters:
        raise Fault(f"{what} takes arguments, {signature}; a hook takes none")


def _hooks_in(plugin: Any) -> list[Hook]:
    specs: Callable[[], Any] | None = getattr(plugin, "_tvc_specs", None)
    if specs is not None:  # a LocalPlugin
        return [Hook("", specs)]
    found = []
    for name in dir(plugin):
        value: Any = getattr(plugin, name, None)
        options = getattr(value, "tvc_impl", None)
        if isinstance(options, dict):
            _check_takes_nothing(name, value)
            found.append(Hook(options["specname"] or name, value, options["optionalhook"]))
        elif name.startswith("tvc_") and callable(value) and not hasattr(value, "tvc_spec"):
            if name not in HOOKS and (near := did_you_mean(name, HOOKS)):
                raise Fault(f"implements an unknown hook {name!r}.{near}")
            raise Fault(f"{name} is not decorated: put @tvc_core.hookimpl above it")
    return found


def check_hooks(hooks: Iterable[Hook], known: Mapping[str, Any]) -> list[Hook]:
    """Return the hooks whose kind exists here.

    An optional one is left out where its kind does not exist, unless it seems to be misspelt.

    Raises:
        Fault: there is no such hook.
    """
    there = []
    for hook in hooks:
        if hook.name in known or not hook.name:
            there.append(hook)
        elif not hook.optional or difflib.get_close_matches(hook.name, known, 1, _NEAR):
            raise Fault(
                f"implements an unknown hook {hook.name!r}.{did_you_mean(hook.name, known)} The "
                f"hooks are {join_names(known)}; for one of a distribution that may be absent "
                "write @hookimpl(optionalhook=True)"
            )
    return there


def collect(
    hooks: Iterable[Hook], known: Mapping[str, tuple[type[Spec], ...]], owner: str
) -> tuple[Spec, ...]:
    """Call a plugin's hooks and return what they offer, sorted by kind and name.

    Raises:
        Fault: one returns something other than a list of its specs.
    """
    specs: list[Spec] = []
    seen: set[tuple[type[Spec], str]] = set()
    for hook in hooks:
        wanted = known.get(hook.name) or tuple(spec for each in known.values() for spec in each)
        result, what = hook.function(), wanted[0].__name__
        if not isinstance(result, (list, tuple)):
            raise Fault(f"{hook.name} returned {type(result).__name__}, not a list of {what}")
        for spec in result:
            # no subclass: code of its own could fail later, in a listing of all plugins
            if type(spec) not in wanted and hook.name:
                raise Fault(f"{hook.name} returned {short_repr(spec)} in its list, not a {what}")
            if type(spec) not in wanted:
                what = f"the {spec.kind} {spec.name!r}"
                raise Fault(f"offers {what}, of a kind that no plugin here defines")
            _check_name(spec, seen, owner)
        specs += result
    return tuple(sorted(specs, key=lambda spec: (spec.kind, spec.name)))


def _check_name(spec: Spec, seen: set[tuple[type[Spec], str]], owner: str) -> None:
    key, what = (type(spec), spec.name), f"offers the {spec.kind} {spec.name!r}"
    if "/" in spec.name:
        raise Fault(f"{what}; only a BackboneFamilySpec offers names with '/'")
    if key in seen:
        raise Fault(f"{what} twice")
    if key in _RESERVED and owner != CORE_OWNER:
        raise Fault(f"{what}, a name of tvc-core's own; choose another")
    seen.add(key)
