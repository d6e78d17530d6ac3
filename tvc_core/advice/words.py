"""What people write that tvc does not take, and what they mean by it: the sentence that an error
adds to what was given.

Habits from other libraries, from YAML and from the shell, each known by its form alone; nothing is
looked up here and no torch is imported. Every function returns text that begins with a space, or
an empty string where it knows no better, so that errors can put it at their end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import did_you_mean

__all__ = [
    "ARGUMENTS", "PATCH_WORDS", "POSITION_WORDS", "TO_PARTIAL_LOAD", "bare_names", "on_backbone",
    "on_block", "on_file", "on_mapping", "on_missing", "on_name", "on_names", "on_operation",
    "on_patch", "on_plugins", "on_value", "on_weights",
]  # fmt: skip

TO_PARTIAL_LOAD = "build the model with weights=None, then tvc_core.partial_load(model, {})"

ARGUMENTS = {
    "pretrained": "pretrained=True is weights='DEFAULT', and False is None (in YAML null).",
    "checkpoint_path": "A file of your own is weights='path/to/file.pth'.",
    "in_chans": "timm's in_chans is in_channels.",
    "drop_rate": "timm's drop_rate is dropout.",
    "img_size": "timm's img_size is image_size.",
    "features_only": "Every hybrid gives its features: model.get_stage_outputs(images).",
    "out_indices": "Every hybrid gives its features: model.get_stage_outputs(images, stages).",
    "device": "Move the model afterwards: model.to(device).",
    "dtype": "Convert the model afterwards: model.to(dtype).",
    "transforms": "The model says its preprocessing: model.transforms().",
    "attention": "Attention is a patch: patches={'layer3': {'wrap': 'se'}}.",
}
"""Arguments of other libraries' builders that have no near name here, or another value."""

POSITION_WORDS = ("after", "before", "parallel", "branch")
PATCH_WORDS = ("params", "init", "name", "position")

_TRUTHS = {
    **dict.fromkeys(("true", "yes", "y", "on"), True),
    **dict.fromkeys(("false", "no", "n", "off"), False),
}
_NOTHING = ("none", "null", "nil", "~", "random", "false", "no", "scratch")
_FILES = {
    "torch": "It is a file of torch.save: in Python, " + TO_PARTIAL_LOAD,
    "tensors": "It holds tensors and no recipe: in Python, " + TO_PARTIAL_LOAD,
    "model": "It is a saved model: in Python, tvc_core.load({}) reads it",
    "recipe": "It is a recipe: in Python, HybridBuilder().build({}) builds it",
}
_SUFFIXES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"), "torch"),
    ".safetensors": "model",
    **dict.fromkeys((".yaml", ".yml"), "recipe"),
}
_TASKS = (
    "fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd", "deeplab", "fcn_",
    "lraspp", "yolo", "detr", "unet", "raft",
)  # fmt: skip
"""How the names of networks begin that are built around a backbone."""


# -- values ----------------------------------------------------------------------------------------


def on_value(value: Any, fits: Callable[[Any], bool]) -> str:
    """Say what a value stands for, where that would fit: a number, true or false, nothing, text."""
    if isinstance(value, float) and value.is_integer() and fits(int(value)):
        return f" Write {int(value)}: a number with a point or an exponent is not a whole one."
    if isinstance(value, (bool, int, float)) and (fits("a") or isinstance(value, bool)):
        reads = "yes, no, on and off as true and false" if isinstance(value, bool) else "a number"
        return f" YAML reads {reads} here" + (": text needs quotes." if fits("a") else ".")
    if not isinstance(value, str):
        return ""
    word = value.strip().lower()
    if word in ("none", "null", "nil", "~"):
        return " For nothing write None in Python and null in YAML, without quotes."
    meant: list[Any] = [_TRUTHS.get(word)]
    for number in (int, float):
        try:
            meant.append(number(value))
        except ValueError:
            continue
    good = [one for one in meant if one is not None and fits(one)]
    if good:
        return f" Write {good[0]!r}, without quotes."
    return did_you_mean(word, ["true", "false"]) if fits(True) and fits(False) else ""


def on_backbone(value: Any) -> str:
    """Say how a network, or a function that makes one, becomes a hybrid."""
    if hasattr(value, "state_dict"):
        return (
            " A network of your own becomes a hybrid by HybridBuilder().from_module(network, "
            "stem=..., stages=..., head=...)."
        )
    if callable(value) and hasattr(value, "__name__"):
        return f" Give the name, {value.__name__!r}, or the network that it makes to from_module."
    return ""


def on_weights(value: Any) -> str:
    """Say how to ask for random weights, the usual ones, or those of a file."""
    text = str(value)
    if value is True or text.lower() in ("true", "yes", "pretrained", "imagenet", "default"):
        return " For the usual pretrained weights write 'DEFAULT'."
    if value is False or text.strip().lower() in ("", *_NOTHING):
        return " For random weights write None in Python and null in YAML, without quotes."
    if isinstance(value, type):
        return f" Name one of its members: {value.__name__}.DEFAULT."
    if isinstance(value, Mapping):
        return f" A state dict of your own: {TO_PARTIAL_LOAD.format('state_dict')}."
    if isinstance(value, Path) or Path(text).suffix in _SUFFIXES or "/" in text:
        address = "the downloaded file" if "://" in text else repr(text)
        return f" A file of your own: {TO_PARTIAL_LOAD.format(address)}."
    return ""


def on_names(value: Any) -> str:
    """Say how a list of class names is written."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return f" Write a list: {parts!r}."
    if isinstance(value, Mapping):
        return " Write only the names, in the order of the outputs: list(class_to_idx)."
    if not isinstance(value, (list, tuple)):
        return ""
    if any(item is None or isinstance(item, bool) for item in value):
        return " YAML reads yes, no, on, off and null as something other than text: put quotes."
    if any(isinstance(item, (int, float)) for item in value):
        return f" Numbers become names in quotes: {[str(item) for item in value][:4]!r}."
    twice = [item for item in value if list(value).count(item) > 1]
    return f" {twice[0]!r} is there twice." if twice else ""


def on_mapping(value: Any, keys: Iterable[str]) -> str:
    """Say how a mapping is written where something else stands."""
    if value is None:
        return " Its keys stand on the lines below it, indented."
    key, colon, _ = value.partition(":") if isinstance(value, str) else ("", "", "")
    return " YAML needs a space after the colon." if colon and key.strip() in keys else ""


def on_patch(op: str, value: Any) -> str:
    """Say where a parameter of a block stands, and how several blocks are written."""
    if isinstance(value, (list, tuple)):
        steps = [{op: block} for block in value if isinstance(block, str)]
        return f" Several are a list of operations: {steps!r}." if steps else ""
    if isinstance(value, (bool, int, float)):
        entry = {"type": "se", "params": {op: value}}
        return f" A parameter stands beside its block, such as {{'wrap': {entry!r}}}."
    return ""


# -- names -----------------------------------------------------------------------------------------


def bare_names(given: str, family: str) -> Iterator[str]:
    """Yield what the name of a network may be inside a family: without what other libraries put
    before it, such as "tu-", "hf_hub:timm/" and "timm.".
    """
    marked = re.fullmatch(rf"(?:hf[-_]hub:)?(?:tu-|{family}[-_.:/])(.+)", given, re.IGNORECASE)
    if marked:
        yield marked[1]
    elif not re.search("[:/]", given):
        yield given


def on_name(given: str, names: list[str]) -> str:
    """Say what a name of something other than a backbone is: a file, an address in Python, a set of
    weights, a detector.
    """
    if Path(given).suffix in _SUFFIXES:
        return f" {_FILES[_SUFFIXES[Path(given).suffix]].format(repr(given))}."
    if there := on_path(given):
        return there
    weights = re.fullmatch(r"(?:.*\.)?(\w+)_Weights(?:\.(\w+))?", given)
    lowered = {name.lower(): name for name in names}
    if weights and weights[1].lower() in lowered:
        name, member = lowered[weights[1].lower()], weights[2] or "DEFAULT"
        return f" These are weights: from_backbone({name!r}, weights={member!r})."
    last = re.split(r"[./:]", given)[-1]
    if last != given and (near := did_you_mean(last, names)):
        other = "/" in given and not given.startswith(("torchvision", "pytorch"))
        return f"{near} Weights of a hub are not opened by name." if other else near
    if given.lower().startswith(_TASKS):
        return " That is a detector or the like, not a backbone: build one around a hybrid."
    return ""


def on_block(given: str, names: list[str]) -> str:
    """Say where the parameters of a block go that stand in its name."""
    call = re.fullmatch(r"(\w+)\((.*)\)", given)
    if call and call[1] in names:
        return f" Parameters stand beside the name: {{'type': {call[1]!r}, 'params': {{...}}}}."
    return ""


def on_operation(given: str) -> str:
    """Say what a word is that stands where the name of an operation should."""
    if given in POSITION_WORDS:
        entry = {"inject": {"type": "se", "position": given}}
        return f" It is a position: write {entry!r}."
    if given in PATCH_WORDS:
        return f" It stands beside the block, as in {{'wrap': {{'type': 'se', {given!r}: ...}}}}."
    return " A patch is an operation and its block, such as {'wrap': 'se'}."


def on_plugins(given: Any) -> str:
    """Say how something becomes a plugin, or what it was meant for."""
    if isinstance(given, str):
        return (
            f"{given!r} is a name, and what is installed need not be given. A backbone is built "
            "by HybridBuilder().from_backbone(name)"
        )
    if hasattr(given, "factory"):
        return "a spec is offered by a plugin: plugin = LocalPlugin('my-blocks'), plugin.add(spec)"
    if hasattr(given, "state_dict"):
        return (
            "a class or network is offered by a plugin: plugin = LocalPlugin('my-blocks'), "
            "plugin.block(...), then plugins=[plugin]"
        )
    return ""


# -- files -----------------------------------------------------------------------------------------


def on_file(path: Path, content: bytes, wanted: str) -> str:
    """Say what a file is, by its first bytes, and what reads it.

    Args:
        path: the file.
        content: its content, or the beginning of it.
        wanted: "recipe", "model" or "tensors", which needs no advice.
    """
    kind = ""
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 100_000_000:
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        kind = "model" if b'"tvc":' in header else "tensors"
    elif content[:4] == b"PK\x03\x04" or (content[:1] == b"\x80" and content[1:2] <= b"\x05"):
        kind = "torch"
    elif re.search(rb"^[^\w\n]{0,20}backbone\W{0,3}:", content[:100_000], re.MULTILINE):
        kind = "recipe"
    return f" {_FILES[kind].format(repr(str(path)))}." if kind not in ("", wanted) else ""


def on_path(given: str) -> str:
    """Say that a name is that of a file, or the path of a folder, that is there."""
    with suppress(OSError, ValueError):  # such as of a name that is too long
        is_folder = bool(re.search(r"[/\\]", given)) and Path(given).is_dir()
        if is_folder or Path(given).is_file():
            what = f"There is a {'folder' if is_folder else 'file'} {given!r}"
            return f" {what}; saved models end in .safetensors, recipes in .yaml."
    return ""


def on_missing(path: Path, suffixes: tuple[str, ...]) -> str:
    """Say what else a path that is not there may mean.

    Args:
        path: what was given.
        suffixes: of the files that are wanted.
    """
    if re.match(r"[a-z]{2,}:/", str(path)):  # of whose slashes a path keeps one
        return " An address is no path: download the file first."
    with suppress(OSError):  # such as of a name that is too long
        if path.is_dir():
            there = sorted(each.name for each in path.iterdir() if each.suffix in suffixes)
            return f" In it: {', '.join(there[:5])}." if there else ""
        if path.suffix or len(path.parts) != 1:
            there = [each.name for each in path.parent.iterdir() if each.suffix in suffixes]
            return did_you_mean(path.name, there)
    if re.fullmatch(r"[\w./-]+", str(path)) and not path.suffix:
        name = json.dumps(str(path))
        return f" In Python, HybridBuilder().from_backbone({name}) builds a network by its name."
    return ""
