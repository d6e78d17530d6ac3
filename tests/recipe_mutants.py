"""Malformed recipes from a seed, and what reading them does to the process.

The whole run is one command, which prints what it found and ends with 1 where that is anything:

    python tests/recipe_mutants.py --count 20000 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import functools
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

VALID = [
    """\
version: 1
name: Mutant
backbone:
  name: resnet50
  weights: IMAGENET1K_V2
  options: {replace_stride_with_dilation: [false, false, true], width_per_group: 6.4e1}
  patches:
    layer3:
      - wrap: {type: se, params: {reduction: 16}, init: paper}
      - inject: {type: "eca", position: before}
    layer4.1.conv2:
      replace:
        type: tvc-blocks:conv_bn_act
        params:
          channels: 512
head:
  num_classes: 3
  dropout: 0.3
  class_names: [cat, dog, 'a "bird"']
freeze_backbone: true
unfreeze_stages: [-1, 2]
""",
    """\
description: >-
  Several heads.
requires: [tvc-resnet>=0.1, 'tvc-attention']
seed: 7
max_params: 40_000_000
grad_checkpointing: [0, layer2]
backbone: {name: tvc-resnet:resnet18, weights: null, stages: 3, in_channels: 4,
           in_channels_policy: [r, g, b, mean]}
head:
  hidden: [64]
  activation: gelu
  heads: {breed: [pug, beagle], age: {num_classes: 1, dropout: 0.1}}
freeze_backbone: {head: last, normalization: eval}
""",
    """\
extends: base.yaml
macros:
  attention: &a {type: cbam_block, params: {reduction: 8}}
  many: {layer1: {wrap: "@attention"}, layer2: [{inject: "@attention"}, {wrap: eca}]}
  classes: 12
backbone: {patches: "@many"}
head: {num_classes: "@classes"}
""",
    """\
extends:
- base.yaml
- other.yaml
backbone:
  image_size: [224, 256]
  patches:
    layer3: null
lock:
  plugins: {tvc-core: 0.1.0}
""",
    "backbone: mobilenet_v3_small\nfreeze_backbone: yes\n",
]
FILES = {
    "base.yaml": "backbone: {name: resnet18, weights: null, patches: {layer3: {wrap: se}}}\n",
    "other.yaml": "extends: base.yaml\nhead: {dropout: .5}\nseed: 3\n",
}  # fmt: skip
"""What stands beside a recipe that extends others."""

JUNK = [
    "", "~", "true", "-1", "0", "1e309", ".nan", "[]", "{}", "[[]]", "&a", "*a", "!!int x",
    "<<: *a",
    "'", '"', "\\", ": ", "- ", "? ", "#", "|\n", ">\n", "---\n", "...\n", "%YAML 9.9\n", "\t",
    "\0",
    "\ud800", "\ufeff", "é", "0x", "1:2:3", "@", "@a", "@@", "`", "2001-01-01", "9" * 400, "[" * 60,
    "{a: " * 60, "\r", "\x85", "\u2028", "name", "type", "wrap", "backbone", "extends", "macros",
    "lock", "/etc/passwd", "../x.yaml", "/dev/zero", ".", "base.yaml", "antigravity:fly",
]  # fmt: skip
WRONG = [
    None, True, False, -1, 0, 1, 2**63, 10**30, 1e308, float("inf"), float("nan"), 0.5, "", " ",
    "@", "@nobody", "@attention", "@@x", "x" * 9000, "\x1b[2J\n", "None", "yes", "1e1", "\u202e",
    [],
    [[]], {}, {"a": {"b": ["c"]}}, {"type": "se"}, {"": 1}, {"a b": 1}, [1, "1", None], ["se"] * 50,
    "base.yaml", "../base.yaml", "/dev/zero", "nobody.yaml", "os:system", "tvc-attention:se",
    "a/b.pth", "weights.safetensors", "../w.pth", "tvc-core", "tvc-core>=99", "x>=1,<y", "layer3",
    "stage:-1", "**", "[", "a..b", "re:(a+)+$", "*.*.*.*", ["layer1"], {"layer1": {"wrap": "se"}},
]  # fmt: skip
KEYS = [
    "backbone", "name", "weights", "patches", "head", "heads", "options", "extends", "macros",
    "lock", "seed", "params", "type", "init", "wrap", "nobody", "", "a.b", "x" * 5000, "\x1b[0m",
    "weigths", "reduction", "plugins", "requires", "stages",
]  # fmt: skip


def mutate_text(rng: random.Random, text: str) -> bytes:
    """Return a recipe with damage to its text."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 0, 1, 1, 2, 5, 20, 100]))
        middle = [
            rng.choice(JUNK),
            text[end : end + 30],
            text[start:end] * 2,
            text[start:end][::-1],
        ]
        text = text[:start] + rng.choice(middle) + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    if content and rng.random() < 0.1:
        place = rng.randrange(len(content))
        content = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    return content


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        data.items() if isinstance(data, dict) else enumerate(data if type(data) is list else ())
    )
    for key, value in items:
        yield from _places(value, (*path, key))


def mutate_structure(rng: random.Random, text: str) -> bytes:
    """Return a recipe with other values and keys, or with parts left out, doubled or moved."""
    data = yaml.safe_load(text)
    for _ in range(rng.randrange(1, 4)):
        path = rng.choice([*_places(data)][1:] or [()])
        if not path:
            break
        above = data
        for key in path[:-1]:
            above = above[key]
        key, kind = path[-1], rng.randrange(6)
        other = rng.choice([*_places(data)])
        if kind == 0:
            del above[key]
        elif kind in (1, 2):
            above[key] = copy.deepcopy(rng.choice(WRONG))
        elif kind == 3 and isinstance(above, dict):
            above[rng.choice(KEYS)] = above.pop(key)
        elif kind == 4 and isinstance(above, dict):
            above[rng.choice(KEYS)] = copy.deepcopy(rng.choice(WRONG))
        elif other != path[: len(other)]:
            found = data
            for each in other:
                found = found[each]
            above[key] = copy.deepcopy(found)
        else:
            above[key] = [above[key], above[key]]
    return yaml.safe_dump(data, sort_keys=False).encode("utf-8", "surrogatepass")


def mutant(seed: int) -> bytes:
    """Return one malformed recipe; a few happen to be right."""
    rng = random.Random(seed)
    text = rng.choice(VALID)
    return (mutate_text if rng.random() < 0.5 else mutate_structure)(rng, text)


def write_files(folder: Path) -> None:
    """Write what stands beside the mutants."""
    for name, text in FILES.items():
        (folder / name).write_text(text)


@functools.cache
def _registry() -> Any:
    from tvc_core import Registry

    return Registry()


def read(path: Path) -> str:
    """Read a recipe in every way that needs no torch; return its errors in the words of the first
    way that refuses it, "" where it is right.
    """
    from tvc_recipes import check_recipe

    from tvc_core import HybridBuilder, Recipe, RecipeDocument, RecipeError, TvcError, load_recipe

    try:
        recipe = load_recipe(path, registry=_registry())
        assert Recipe.from_document(RecipeDocument.read(path), registry=_registry()) == recipe
        problem = ""
    except RecipeError as error:
        problem = str(error)
        recipe = None
    if recipe is not None:
        try:
            HybridBuilder(registry=_registry()).resolve(recipe)
        except TvcError as error:
            problem = str(error)
    found = check_recipe(path, registry=_registry())
    assert all(isinstance(each, TvcError) for each in found)
    assert bool(found) >= bool(problem), problem
    for text in (problem, *map(str, found)):
        assert len(text.encode()) <= 2048, f"{len(text)} characters: {text[:200]}"
        assert text.isprintable() or not text, f"not printable: {text[:200]!r}"
    return problem


# -- what it does to the process -------------------------------------------------------------------

_QUIET = ("os.listdir", "os.scandir", "os.fwalk")
_FORBIDDEN = (
    "socket", "subprocess", "os", "shutil", "ctypes", "urllib", "tempfile", "pty", "http", "ftplib",
    "import", "exec", "compile", "code", "marshal", "pickle",
)  # fmt: skip


_NOTED: list[list[Any]] = []
"""Where the hook notes what it sees: the innermost `audited` that runs."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _NOTED:
        return
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        if (mode is not None and mode not in ("r", "rb")) or (flags or 0) & 0o3:
            _NOTED[-1].append((event, arguments))
    elif event == "compile" and arguments[1] in ("<unknown>", None):
        pass  # ast.parse: the source of a block, for its parameters
    elif event not in _QUIET and event.partition(".")[0] in _FORBIDDEN:
        _NOTED[-1].append((event, arguments))


@functools.cache
def _add_hook() -> None:
    """Add the hook. It stays for the life of the process, and each costs every event time."""
    sys.addaudithook(_hook)


@contextmanager
def audited(seen: list[Any]) -> Iterator[None]:
    """Note what is imported, written, connected to, started or run inside. Reading is not noted;
    `compile` only where what is compiled is to be run.
    """
    _add_hook()
    before = {*sys.modules}
    _NOTED.append(seen)
    try:
        yield
    finally:
        _NOTED.pop()
        seen += [("module", name) for name in sorted({*sys.modules} - before)]


def warm_up(folder: Path) -> None:
    """Read valid recipes, which import what reading needs."""
    for number, text in enumerate([*VALID, "backbone: resnet18\nextends: {a: 1}\n"]):
        path = folder / f"warm{number}.yaml"
        path.write_text(text)
        read(path)


def run(folder: Path, seeds: range, seen: list[Any]) -> tuple[int, list[str]]:
    """Return how many mutants were refused, and what escaped."""
    write_files(folder)
    warm_up(folder)
    refused, escaped, path = 0, [], folder / "mutant.yaml"
    contents = [mutant(seed) for seed in seeds]
    for seed, content in zip(seeds, contents, strict=True):
        path.write_bytes(content)
        try:
            with audited(noted := []):
                refused += bool(read(path))
        except Exception:  # which is what is looked for
            escaped.append(f"seed {seed}: {traceback.format_exc()}")
        seen += [(seed, *each) for each in noted]
    return refused, escaped


def main() -> int:
    """Run the command of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    seen: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(given.seed, given.seed + given.count)
        refused, escaped = run(Path(folder), seeds, seen)
    for each in (*escaped[:20], *seen[:20]):
        print(each)
    print(f"{given.count} mutants: {refused} refused, {len(escaped)} escaped, {len(seen)} effects")
    return 1 if escaped or seen else 0


if __name__ == "__main__":
    sys.exit(main())
