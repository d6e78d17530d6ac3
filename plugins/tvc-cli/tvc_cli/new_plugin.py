"""Write a new plugin: a complete distribution with one working piece, from the templates beside
this module.
"""

from __future__ import annotations

import datetime
import importlib.util
import keyword
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, Registry

from .first_party import FIRST_PARTY

__all__ = ["PIECES", "check_name", "write_plugin"]

# for each kind: what its piece's name ends in, which is also its module's name; the class or
# function that is offered; and what the plugin is
PIECES: dict[str, tuple[str, str, str]] = {
    "block": ("gate", "Gate", "A gate that scales each channel."),
    "backbone": ("net", "ResidualNet", "A small residual network."),
    "op": (
        "sandwich",
        "sandwich",
        "A patch operation that inserts a block on both sides of its target.",
    ),
    "initializer": ("orthogonal", "orthogonal", "An initializer with orthogonal weights."),
}
_SPECS: dict[str, type[Any]] = {
    "block": BlockSpec,
    "backbone": BackboneSpec,
    "op": PatchOpSpec,
    "initializer": InitializerSpec,
}
_PIECE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_CLASS = re.compile(r"([A-Z][A-Za-z0-9]*)")
# what the templates use, and what one line can hold
_USED = {"plugin", "target", "block", "sides", "nn", "torch", "math", "layer", "module"}
_USED |= {"Tensor", "Residual", "BackboneSpec", "WeightsSpec", "BlockMaker", "Target"}
_USED |= {"ValueError", "isinstance"}
_LONGEST_PIECE, _LONGEST_FACTORY = 26, 75
_TEMPLATES = Path(__file__).parent / "templates"
_KIND_WORDS = {"op": "patch operation"}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
# folders that a distribution has beside its package
_TAKEN = {"tests", "docs", "examples", "src", "dist", "build"}

# what the recipe of a new plugin is made with, the first that is installed; the last resort is the
# first
_BACKBONES = (
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "convnext_tiny",
    "swin_t",
)
_BLOCKS = ("se", "eca", "conv_bn_act", "squeeze_excitation")
_OWNERS = {"resnet18": "tvc-resnet", "se": "tvc-attention"}
_TARGETS = {"resnet18": "layer3"}


def check_name(name: str) -> str:
    """Return the import name of the package of a distribution.

    Raises:
        ValueError: the name is not in normalized form, taken by tvc or Python, or would hide
            something that is installed.
    """
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f" Did you mean {near!r}?" if _NAME.fullmatch(near) else ""
        raise ValueError(
            f"{name!r} is no name such as acme-blocks: lower-case letters, digits and single '-', "
            f"a letter first.{hint}"
        )
    package = name.replace("-", "_")
    if len(name) > _LONGEST:
        raise ValueError(
            f"{name!r} has {len(name)} characters; take at most {_LONGEST}, since qualified names "
            "have it"
        )
    if name in FIRST_PARTY:
        raise ValueError(
            f"{name!r} is a distribution of the tvc project; choose another name, such as "
            "acme-blocks"
        )
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package in _TAKEN:
        raise ValueError(
            f"{name!r} would have the import name {package!r}, which means something else; choose "
            "another name"
        )
    found = importlib.util.find_spec(package)
    if found is not None and found.origin is not None and not _is_plugin(name):
        raise ValueError(
            f"{name!r} would have the import name {package!r}, and hide what is at {found.origin}; "
            "choose another"
        )
    return package


def _check_piece(piece: str, class_name: str | None, package: str, kind: str) -> tuple[str, str]:
    """Return the name of what the plugin offers, and of the class or function that it is.

    Raises:
        ValueError: the name has another form, is taken, or is too long for a line of code.
    """
    if not _PIECE.fullmatch(piece) or keyword.iskeyword(piece) or piece in _USED:
        near = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", piece).strip("_").lower()
        hint = f" Did you mean {near!r}?" if _PIECE.fullmatch(near) and near != piece else ""
        raise ValueError(
            f"--name {piece!r} is no name such as triplet or my_gate: lower-case letters, digits "
            f"and '_', and no word that the code uses already.{hint}"
        )
    owners = [o.owner for o in Registry().all(_SPECS[kind]) if o.spec.name == piece]
    if owners and owners[0].replace("-", "_") != package:
        raise ValueError(f"--name {piece!r} is taken by {owners[0]}; choose another")
    if class_name is not None and kind not in ("block", "backbone"):
        raise ValueError(f"--class is for blocks and backbones; of {kind} {piece!r} is a function")
    camel = "".join(word.capitalize() for word in piece.split("_"))
    made = class_name or (camel if kind in ("block", "backbone") else piece)
    is_name = class_name is None or _CLASS.fullmatch(class_name)
    if not is_name or made in _USED or keyword.iskeyword(made):
        other = f"My{camel}" if made == camel else camel
        raise ValueError(f"--class {made!r} is no name of a class such as {other!r}, or taken")
    if len(piece) > _LONGEST_PIECE or len(package + piece + made) > _LONGEST_FACTORY:
        raise ValueError(
            f"--name has at most {_LONGEST_PIECE} characters, and with --class and the package's "
            f"name at most {_LONGEST_FACTORY}: {package}.{piece}:{made}"
        )
    return piece, made


def write_plugin(
    name: str, kind: str, into: Path, piece: str | None = None, class_name: str | None = None
) -> tuple[Path, list[str]]:
    """Write the distribution into a new folder of its name: everything, or nothing.

    Args:
        name: of the distribution, such as acme-blocks.
        kind: a word of `PIECES`.
        into: an existing folder.
        piece: the name of what it offers, such as "triplet"; by default one made from `name`.
        class_name: of a block or backbone, the name of its class; by default made from `piece`.

    Returns:
        The new folder, and the paths of its files in it.

    Raises:
        ValueError: `check_name` refuses the name, or `piece` or `class_name` has another form, is
            taken or too long.
        FileExistsError: there is something of that name in the folder.
    """
    values = _values(name, kind, piece, class_name)
    folder = into / name
    if os.path.lexists(folder):
        raise FileExistsError(
            f"{str(folder)!r} exists; choose another name, or another folder with --into"
        )
    texts = dict(_filled(_TEMPLATES / kind, values))
    values["recipe"] = texts["recipe.yaml"]
    texts |= dict(_filled(_TEMPLATES / "common", values))
    draft = into / f".{name}.{os.getpid()}"
    try:
        for path, text in texts.items():
            file = draft / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        draft.rename(folder)
    except BaseException:  # also Ctrl-C leaves nothing behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder, sorted(texts)


def _values(name: str, kind: str, piece: str | None, class_name: str | None) -> dict[str, str]:
    """Return what stands for each placeholder of the templates."""
    package = check_name(name)
    module, made, summary = PIECES[kind]
    prefix = re.sub(r"^tvc_", "", package).partition("_")[0]
    prefix = prefix if prefix[0].isalpha() else package
    offered = f"{prefix}_{module}"
    if piece is not None:
        module, made = _check_piece(piece, class_name, package, kind)
        offered = module
    elif class_name is not None:
        raise ValueError(
            "--class needs --name, what it is called in recipes, such as --name triplet"
        )
    registry = Registry()
    backbone, target, backbone_owner = _backbone(registry)
    block, block_owner = _block(registry)
    needs = {"block": [backbone_owner], "backbone": []}.get(kind, [block_owner, backbone_owner])
    requires = ["pytest>=8.0", *dict.fromkeys(owner for owner in needs if owner)]
    return {
        "name": name,
        "package": package,
        "prefix": prefix,
        "kind": _KIND_WORDS.get(kind, kind),
        "piece": offered,
        "module": module,
        "object": made,
        "summary": summary,
        "api": "(1, 0)",  # the lowest that has what the templates use
        "core_version": metadata.version("tvc-core"),
        "test_requires": ", ".join(f'"{requirement}"' for requirement in requires),
        "backbone": backbone,
        "target": target,
        "block": block,
        "year": str(datetime.date.today().year),
    }


def _backbone(registry: Registry) -> tuple[str, str, str]:
    """Return the name of a small backbone that is installed, the end of its last stage but one, and
    its distribution.
    """
    for offer in _first_party(registry, BackboneSpec, _BACKBONES):
        stages = offer.spec.stage_paths
        return registry.label(offer), stages[max(len(stages) - 2, 0)][-1], offer.owner
    name = _BACKBONES[0]
    return name, _TARGETS[name], _OWNERS[name]


def _block(registry: Registry) -> tuple[str, str]:
    for offer in _first_party(registry, BlockSpec, _BLOCKS):
        return registry.label(offer), offer.owner
    return _BLOCKS[0], _OWNERS[_BLOCKS[0]]


def _first_party(registry: Registry, kind: type[Any], names: tuple[str, ...]) -> Iterator[Any]:
    offers = {offer.spec.name: offer for offer in registry.all(kind) if offer.owner in FIRST_PARTY}
    yield from (offers[name] for name in names if name in offers)


def _filled(folder: Path, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file that a folder of templates stands for."""
    for file in sorted(path for path in folder.rglob("*.tmpl") if path.is_file()):
        path = file.relative_to(folder).as_posix().removesuffix(".tmpl")
        path = re.sub(
            r"\bpackage/|(?<=test_)package\b",
            lambda found: found[0].replace("package", values["package"]),
            path,
        )
        path = re.sub(r"^dot_", ".", path.replace("/module.py", f"/{values['module']}.py"))
        yield path, Template(file.read_text(encoding="utf-8")).substitute(values)


def _is_plugin(distribution: str) -> bool:
    """Tell whether an installed distribution announces a plugin, such as an earlier draft of the
    one to be written.
    """
    try:
        return any(
            entry.group == "tvc.plugins"
            for entry in metadata.distribution(distribution).entry_points
        )
    except metadata.PackageNotFoundError:
        return False
