"""Write docs/reference from the code: `python docs/generate.py`; with `--check`, say what is out of
date and exit with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tvc_cli.docstrings import described_parameters, items_of, sections_of

import tvc_core
from tvc_core import (
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    Kind,
    PatchOpSpec,
    Recipe,
    Registry,
    TvcError,
    hookspecs,
    testing,
)
from tvc_core.advice.factories import parameters_of
from tvc_core.recipe import schema
from tvc_core.registry.discovery import HOOKS
from tvc_core.specs import PATCH_KEYS

FOLDER = Path(__file__).resolve().parent / "reference"
PLUGINS = FOLDER.parents[1] / "plugins"
HINTS = "../../tvc_core/advice/hints.json"
FIRST_PARTY = (
    *(
        "tvc-core",
        "tvc-resnet",
        "tvc-efficientnet",
        "tvc-convnext",
        "tvc-mobilenet",
        "tvc-convnets",
        "tvc-transformers",
    ),
    *("tvc-attention", "tvc-blocks", "tvc-adapters"),
)
"""Whose offers the tables list, whatever else is installed."""

GENERATED = "<!-- Written by docs/generate.py from the code; edit the code instead. -->"
GROUPS = {
    "Build": (
        *("HybridBuilder", "load_yaml_recipe", "load_recipe", "load"),
        *("read_changes", "Recipe", "RecipeDocument", "Patches", "Weights"),
    ),
    "Models": (
        *("HybridModel", "StageInfo", "LevelInfo", "FeatureExtractor"),
        *("PatchRecord", "PatchReport", "GateStatistics", "PatchEffect", "Patch", "HeadInfo"),
        *("Preprocessing", "as_rgb"),
    ),
    "Train": (
        *("FreezeReport", "PartReport", "HeadReport", "NormalizationReport", "freeze_head"),
        *("audit", "AuditReport", "param_groups", "fold_patches", "FoldReport"),
        "drop_closed_patches",
    ),
    "Weights": (
        *("partial_load", "transfer_weights", "LoadReport", "read_state_dict"),
        *("plain_state_dict", "weights_file", "diff_weights", "WeightsDiff", "TensorChange"),
        *("describe_file", "check_header", "FileInfo", "digest_of_tensors"),
    ),
    "Look at backbones": ("describe_backbone", "describe_model", "PathInfo"),
    "Plugins": (
        *("API_VERSION", "hookimpl", "hookspec", "Spec", "Kind"),
        *("BackboneSpec", "BackboneFamilySpec", "WeightsSpec", "BlockSpec"),
        *("PatchOpSpec", "Target", "POSITIONS", "Position", "BlockMaker", "InitializerSpec"),
        *(
            "build_torchvision",
            "NoClassifier",
            "is_normalization",
            "is_watched",
            "ThreadMode",
            "own_randomness",
            "LocalPlugin",
            "Registry",
            "Named",
            "PluginInfo",
        ),
        *("did_you_mean", "foreign", "join_names", "on_value", "short_repr", "what_there_is"),
        *("check_hybrid", "check_target", "write_file"),
    ),
}
"""Where a public name stands in api.md. Errors have a page of their own."""

HOOK_PAGES = {
    "tvc_backbones": "backbones",
    "tvc_blocks": "blocks",
    "tvc_patch_ops": "patch-operations",
    "tvc_initializers": "initializers",
}
"""The page of docs/plugin-authors on each hook."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where a page is out of date",
    )
    check = parser.parse_args().check
    stale = [name for name, text in pages().items() if not _is(FOLDER / name, text)]
    if check:
        print(
            "\n".join(f"out of date: docs/reference/{name}" for name in stale)
            or "docs/reference is up to date"
        )
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(pages())} pages to {FOLDER}, {len(stale)} changed")
    return 0


def pages() -> dict[str, str]:
    """Return the text of every file that is written, by its path from docs/reference."""
    registry = Registry()
    made: dict[str, Callable[[], Iterable[str]]] = {
        "index.md": _index,
        "api.md": _api,
        "backbones.md": lambda: _backbones(registry),
        "blocks.md": lambda: _blocks(registry),
        "operations.md": lambda: _operations(registry),
        "initializers.md": lambda: _initializers(registry),
        "recipe.md": _recipe,
        "errors.md": _errors,
        "hooks.md": _hooks,
    }
    texts = {name: "\n".join([GENERATED, *make()]).rstrip() + "\n" for name, make in made.items()}
    return {**texts, HINTS: json.dumps(_hints(registry), indent=1) + "\n"}


def _hints(registry: Registry) -> dict[str, dict[str, str]]:
    """Return the first-party distribution of every name, by its kind."""
    first_party = {file.parent.name for file in PLUGINS.glob("*/pyproject.toml")}
    tables: dict[str, dict[str, str]] = {}
    for kind in (*(offer.spec.spec for offer in registry.all(Kind)), Kind):
        for offer in registry.all(kind):
            if offer.owner in first_party:
                tables.setdefault(kind.kind, {})[offer.spec.name] = offer.owner
    return tables


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


# -- pages -----------------------------------------------------------------------------------------


def _index() -> Iterable[str]:
    yield from (
        "# Reference",
        "",
        "Every page here is written by `docs/generate.py` from the code.",
        "",
    )
    for name, what in {
        "api": "the public names of `tvc_core`",
        "backbones": "networks, with stages, heads, weights and preprocessing",
        "blocks": "modules that patches insert, with their parameters",
        "operations": "patch operations",
        "initializers": "weight initializers",
        "recipe": "the keys of a recipe",
        "errors": "errors and warnings",
        "hooks": "the hooks that plugins implement",
    }.items():
        yield f"- [{name}]({name}.md): {what}"


def _api() -> Iterable[str]:
    yield from (
        "# API",
        "",
        "Everything that `tvc_core` exports. Errors are [on their own page](errors.md).",
        "",
    )
    grouped = {name for names in GROUPS.values() for name in names}
    public = {name for name in tvc_core.__all__ if not _is_error(getattr(tvc_core, name))}
    assert grouped == public, f"GROUPS and the public names differ: {sorted(grouped ^ public)}"
    for title, names in GROUPS.items():
        yield from (f"## {title}", "")
        for name in names:
            yield from _entry(name, getattr(tvc_core, name), "###")
    yield from ("## Tests of plugins", "", "In `tvc_core.testing`, for tests only.", "")
    for name in testing.__all__:
        yield from _entry(name, getattr(testing, name), "###")


def _backbones(registry: Registry) -> Iterable[str]:
    offers = [offer for offer in registry.all(BackboneSpec) if offer.owner in FIRST_PARTY]
    yield from (
        "# Backbones",
        "",
        f"{len(offers)} networks. Stage 0 is the first after the stem; `stage_info` of a",
    )
    yield from (
        "model has the measured channels and strides. What the head names is trainable under "
        "`freeze_backbone`.",
        "",
    )
    for owner in dict.fromkeys(offer.owner for offer in offers):
        own = [offer.spec for offer in offers if offer.owner == owner]
        yield from (f"## {owner}", "")
        rows = [
            (
                f"`{s.name}`",
                _paths(s.stem),
                "; ".join(_paths(paths) for paths in s.stage_paths),
                f"`{s.head}`",
                s.summary,
            )
            for s in own
        ]
        yield from _table(("name", "stem", "stages", "head", "what"), rows)
        weights = [
            (
                f"`{s.name}`",
                f"`{w.name}`" + (" (default)" if w.name == s.default_weights else ""),
                "-" if w.num_params is None else f"{w.num_params / 1e6:.1f}",
                "-" if w.gflops is None else f"{w.gflops:.2f}",
                "-" if w.acc1 is None else f"{w.acc1:.2f}",
                w.license or "not stated",
                f"{w.crop_size}",
                f"{w.resize_size}",
                w.interpolation,
                " ".join(f"{value:.3g}" for value in w.mean),
                " ".join(f"{value:.3g}" for value in w.std),
            )
            for s in own
            for w in s.weights
        ]
        yield from ("Weights and their preprocessing, which `model.transforms()` applies:", "")
        yield from _table(
            (
                *("name", "weights", "parameters [10^6]", "GFLOPs", "acc@1 [%]", "license"),
                *("crop [pixels]", "resize [pixels]", "interpolation", "mean", "std"),
            ),
            weights,
        )
        options: dict[str, list[str]] = {}
        for s in own:
            text = ", ".join(f"`{name}={value!r}`" for name, value in s.options.items()) or "none"
            options.setdefault(text, []).append(f"`{s.name}`")
        yield from ("Options, with their defaults:", "")
        yield from (f"- {', '.join(names)}: {text}" for text, names in options.items())
        sources: dict[str, list[str]] = {}
        for s in own:
            sources.setdefault(s.source or "not stated", []).append(f"`{s.name}`")
        yield from ("", "Published in:", "")
        yield from (f"- {source}: {', '.join(names)}" for source, names in sources.items())
        yield ""


def _blocks(registry: Registry) -> Iterable[str]:
    yield from (
        "# Blocks",
        "",
        "Modules for the field `type` of a patch. The width of the incoming map is measured;",
    )
    yield from ("you write the other parameters under `params`.", "")
    offers = [offer for offer in registry.all(BlockSpec) if offer.owner in FIRST_PARTY]
    rows = [
        (
            f"[`{o.spec.name}`](#{o.spec.name})",
            o.owner,
            o.spec.category,
            ", ".join(o.spec.layouts),
            "yes" if o.spec.preserves_shape else "depends",
            o.spec.summary,
        )
        for o in offers
    ]
    yield from _table(("name", "plugin", "category", "layouts", "keeps the shape", "what"), rows)
    for offer in offers:
        factory = offer.load()
        yield from (f"## {offer.spec.name}", "")
        yield from _docstring(factory.__doc__, skip=("Args",))
        described = described_parameters(factory)
        parameters = parameters_of(factory, skip=1) or {}
        rows = [
            (f"`{name}`", _default(default), described.get(name, ""))
            for name, default in parameters.items()
        ]
        yield from (
            _table(("parameter", "default", "what"), rows)
            if rows
            else ("It has no parameters.", "")
        )


def _operations(registry: Registry) -> Iterable[str]:
    yield from ("# Patch operations", "", "The key of a patch: `{target: {operation: block}}`.", "")
    yield from _factories(registry, PatchOpSpec, keys=True)


def _initializers(registry: Registry) -> Iterable[str]:
    yield from (
        "# Initializers",
        "",
        "Names for the field `init` of a patch, and for `init_new_layers` of `partial_load`.",
        "",
    )
    yield from _factories(registry, InitializerSpec, keys=False)


def _factories(registry: Registry, kind: type[Any], *, keys: bool) -> Iterable[str]:
    for offer in registry.all(kind):
        if offer.owner not in FIRST_PARTY:
            continue
        spec = offer.spec
        yield from (f"## {spec.name}", "", f"From {offer.owner}.", "")
        yield from _docstring(offer.load().__doc__)
        if keys:
            names = [*(PATCH_KEYS if spec.takes_block else ("name",))]
            options = [
                f"`{name}` (default {_default(value)})" for name, value in spec.options.items()
            ]
            yield from (
                "Keys of its full form: "
                + ", ".join([f"`{name}`" for name in names] + options)
                + ".",
                "",
            )
        if spec.source:
            yield from (f"Source: {spec.source}", "")


def _recipe() -> Iterable[str]:
    described = described_parameters(Recipe)
    entry = described_parameters(schema.PatchEntry)
    by_field = {"type": "block"}
    yield from (
        "# Recipe keys",
        "",
        "A recipe is a YAML file or a mapping. An unknown key, a key that stands twice or a value",
    )
    yield from (
        "of the wrong kind is a `RecipeError`. `backbone: NAME` is short for `backbone: {name: "
        "NAME}`.",
        "",
    )
    for title, prefix, names in (
        ("Top level", "", schema.SECTIONS[""]),
        ("Under `backbone`", "backbone.", schema.SECTIONS["backbone"]),
        ("Under `head`", "head.", schema.SECTIONS["head"]),
    ):
        yield from (f"## {title}", "")
        rows = []
        for name in names:
            what = described.get(
                "backbone" if prefix == "backbone." and name == "name" else name, ""
            )
            if not prefix and name in ("backbone", "head"):
                what = f"a mapping, see below{'; required' if name == 'backbone' else ''}"
            default = Recipe.__dataclass_fields__.get(name)
            shown = (
                ""
                if default is None or default.default is dataclasses.MISSING
                else f"`{_yaml(default.default)}`"
            )
            rows.append(
                (f"`{name}`", "" if prefix == "backbone." and name == "name" else shown, what)
            )
        yield from _table(("key", "default", "what"), rows)
    yield from (
        "## In a patch",
        "",
        "`TARGET: {OPERATION: BLOCK}`, or in full `TARGET: {OPERATION: {...}}` with these keys and",
    )
    yield from (
        "and those of the [operation](operations.md). A list of such mappings puts several patches "
        "at one target.",
        "",
    )
    yield from _table(
        ("key", "what"),
        [(f"`{name}`", entry.get(by_field.get(name, name), "")) for name in PATCH_KEYS],
    )


def _errors() -> Iterable[str]:
    yield from (
        "# Errors and warnings",
        "",
        "Every error is a `TvcError` and also the built-in exception that it resembles.",
        "",
    )
    yield "The [FAQ](../faq.md) explains them by their texts."
    yield ""
    found = [getattr(tvc_core, name) for name in tvc_core.__all__]
    errors = sorted(
        (e for e in found if _is_error(e)), key=lambda e: (e is not TvcError, e.__name__)
    )
    rows = [
        (
            f"`{e.__name__}`",
            ", ".join(f"`{base.__name__}`" for base in e.__bases__),
            " ".join((e.__doc__ or "").split()),
        )
        for e in errors
    ]
    yield from _table(("name", "is a", "when"), rows)


def _hooks() -> Iterable[str]:
    major, minor = hookspecs.API_VERSION
    yield from (
        "# Hooks",
        "",
        f"Plugin API {major}.{minor}, entry-point group `{hookspecs.ENTRY_POINT_GROUP}`. Each hook "
        "takes",
    )
    yield from (
        "no arguments and returns a list of specs. [Your first "
        "plugin](../plugin-authors/first-plugin.md) makes one.",
        "",
    )
    for name, (spec, *_) in HOOKS.items():
        yield from (
            f"## {name}",
            "",
            f"Returns `list[{spec.__name__}]`. Fields, factory and a full example: "
            f"[{HOOK_PAGES[name]}](../plugin-authors/{HOOK_PAGES[name]}.md).",
            "",
        )
        yield from _docstring(getattr(hookspecs, name).__doc__)


# -- parts -----------------------------------------------------------------------------------------


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, (TvcError, Warning))


def _entry(name: str, value: Any, level: str) -> Iterable[str]:
    """Yield the section of one public name."""
    yield from (f"{level} {name}", "")
    if isinstance(value, tuple):
        yield from (f"`{name} = {value!r}`", "", _constant_docs().get(name, ""), "")
    elif inspect.isclass(value):
        if (
            not issubclass(value, enum.Enum)
            and not _is_error(value)
            and name not in ("HybridModel",)
        ):
            yield from _signature(name, value)
        yield from _docstring(value.__doc__)
        for member, thing in _members(value):
            yield from _member(name, member, thing, f"{level}#")
    elif inspect.isroutine(value):
        yield from _signature(name, value)
        yield from _docstring(value.__doc__)
    elif name == "hookimpl":
        yield from ("The decorator that marks a hook implementation, `@hookimpl`.", "")
    elif name == "hookspec":
        yield from ("The decorator that marks a hook's specification, `@hookspec`.", "")
    elif isinstance(value, Mapping):
        names = ", ".join(f"`{key!r}`" for key in value)
        yield from (f"A mapping with the keys {names}.", "", _constant_docs().get(name, ""), "")
    else:
        yield from (f"`{name} = {_plain(value)}`", "", _constant_docs().get(name, ""), "")


def _constant_docs() -> dict[str, str]:
    return {
        "POSITIONS": "Every `Position` by its name, as recipes give it.",
        "API_VERSION": "The plugin API of this core: a plugin's major must be equal, its minor at "
        "most this one's.",
        "BlockMaker": "Makes the user's block for a number of input channels.",
        "Patches": "What to change where: targets with their patches.",
        "Weights": 'A pretrained set: its name, "DEFAULT", an enum member of torchvision, or None '
        "for random weights.",
    }


def _members(cls: type[Any]) -> Iterable[tuple[str, Any]]:
    """Yield the public methods and properties that a class defines, inherited ones of tvc's own
    included.
    """
    seen: dict[str, Any] = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith("tvc_core")]):
        seen.update(vars(base))
    for name, thing in seen.items():
        callable_ = (
            isinstance(thing, (property, staticmethod))
            or inspect.isfunction(thing)
            or hasattr(thing, "method")
        )
        if not name.startswith("_") and callable_ and getattr(thing, "__doc__", None):
            yield name, thing


def _member(owner: str, name: str, thing: Any, level: str) -> Iterable[str]:
    yield from (f"{level} {owner}.{name}", "")
    if isinstance(thing, property):
        kind = str(thing.fget.__annotations__.get("return", "")) if thing.fget else ""
        yield from (
            f"Property{f', `{kind}`' if kind else ''}"
            f"{'' if thing.fset is None else ', can be set'}.",
            "",
        )
        yield from _docstring(thing.__doc__)
        return
    function = (
        thing.__func__ if isinstance(thing, staticmethod) else getattr(thing, "method", thing)
    )
    yield from _signature(name, function, skip=0 if isinstance(thing, staticmethod) else 1)
    yield from _docstring(function.__doc__)


def _signature(name: str, value: Any, skip: int = 0) -> Iterable[str]:
    signature = inspect.signature(value)
    parameters = list(signature.parameters.values())[skip:]
    text = (
        str(signature.replace(parameters=parameters)).replace("'", "")
        if not parameters
        else _joined(signature, parameters)
    )
    yield from ("```text", f"{name}{text}", "```", "")


def _joined(signature: inspect.Signature, parameters: list[inspect.Parameter]) -> str:
    parts: list[str] = []
    star = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        mark = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        kind = "" if p.annotation is p.empty else f": {_plain(p.annotation)}"
        default = "" if p.default is p.empty else f" = {_plain_default(p.default)}"
        parts.append(f"{mark}{p.name}{kind}{default}")
    back = (
        ""
        if signature.return_annotation is signature.empty
        else f" -> {_plain(signature.return_annotation)}"
    )
    line = f"({', '.join(parts)}){back}"
    return line if len(line) <= 100 else "(\n    " + ",\n    ".join(parts) + f",\n){back}"


def _plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text.replace("NoneType", "None"))


def _plain_default(value: Any) -> str:
    if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "{}"
    return repr(value)


def _default(value: Any) -> str:
    return "required" if value is ... else f"`{value!r}`"


def _yaml(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, tuple)
        else "none"
    )


def _paths(paths: Iterable[str]) -> str:
    return " ".join(f"`{path}`" for path in paths)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


# -- docstrings ------------------------------------------------------------------------------------


def _docstring(doc: str | None, skip: tuple[str, ...] = ()) -> Iterable[str]:
    """Yield a docstring as Markdown."""
    for title, lines in sections_of(doc):
        if title in skip:
            continue
        text = inspect.cleandoc("\n".join(["", *lines])).strip()
        if title == "Example":
            yield from ("<!-- fmt: off -->", "```python", text, "```", "<!-- fmt: on -->", "")
        elif title in ("Args", "Raises"):
            yield from (f"{'Arguments' if title == 'Args' else title}:", "")
            yield from (f"- `{names}`: {what}" for names, what in items_of(lines))
            yield ""
        elif title:
            yield from (f"{title}: {' '.join(text.split())}", "")
        elif text:
            yield from (*text.splitlines(), "")


if __name__ == "__main__":
    sys.exit(main())
