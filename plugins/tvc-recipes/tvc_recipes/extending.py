"""The section `extends`: a recipe starts from other files, and from templates that plugins offer.

Mappings are merged key by key, in the order in which the sources are named, the recipe itself last;
anything else takes the place of what was there. A patch target that says null takes an inherited
patch away.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from tvc_core import (
    Named,
    RecipeDocument,
    RecipeError,
    Registry,
    TvcError,
    did_you_mean,
    foreign,
    join_names,
    short_repr,
    what_there_is,
)

__all__ = ["extend"]

MAX_DEPTH, MAX_FILES, MAX_VALUES, MAX_BYTES = 10, 50, 10_000, 1_000_000
_SUFFIXES = (".yaml", ".yml")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def extend(document: RecipeDocument, registry: Registry) -> RecipeDocument:
    """Return a recipe with what it extends in it, each value with its own place.

    Files are looked for beside the file that names them, and must be regular files under the folder
    of the recipe that was asked for.

    Args:
        document: the recipe.
        registry: where templates are looked up.

    Raises:
        RecipeError: a file that is not there or outside of that folder, a circle, more than 10
            files in a row, more than 50 in all, or an unknown template.
    """
    is_file = document.place.marks is not None
    start = Path(document.place.source) if is_file else Path("recipe")
    extending = _Extending(start.parent.resolve(), registry)
    return extending.whole(document, start.parent, [start.resolve()])


class _Extending:
    """One recipe's files: each is read once."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.root, self.registry = root, registry
        self.read: dict[Path, RecipeDocument] = {}

    def whole(self, document: RecipeDocument, folder: Path, chain: list[Path]) -> RecipeDocument:
        """Return a document with what it extends.

        Args:
            document: the recipe.
            folder: of its file.
            chain: the files that lead here, by their real paths, this one last.
        """
        if not isinstance(document.data, Mapping) or "extends" not in document.data:
            return document
        place = document.place / "extends"
        named = document.data["extends"]
        names = [named] if isinstance(named, str) else named
        texts = isinstance(names, list) and all(isinstance(each, str) and each for each in names)
        if not names or not texts:
            raise place.error("extends is a file, a template, or a list of them")
        if len(chain) > MAX_DEPTH:
            raise place.error(f"more than {MAX_DEPTH} recipes extend one another")
        data: dict[str, Any] = {}
        marks: dict[Any, Any] = {}
        for index, name in enumerate(names):
            at = place if isinstance(named, str) else place / index
            base = self.base(name, at, folder, chain)
            data, marks = _merged(data, marks, base.data, dict(base.place.marks or {}))
        own = {key: value for key, value in document.data.items() if key != "extends"}
        if len(chain) == 1:  # what others extend may take away what they inherit elsewhere
            _check_removals(own, data, document.place)
        data, marks = _merged(data, marks, own, dict(document.place.marks or {}))
        if _size(data) > MAX_VALUES:
            raise place.error(f"with what it extends it has more than {MAX_VALUES:,} values")
        marks[()] = (document.place.marks or {}).get((), (place.mark, place.mark))
        kept = marks if document.place.marks is not None else None
        return replace(document, data=data, place=replace(document.place, marks=kept))

    def base(self, name: str, place: Any, folder: Path, chain: list[Path]) -> RecipeDocument:
        """Return what one name stands for, whole."""
        if PurePosixPath(name).suffix not in _SUFFIXES:
            template = self.template(name, place, folder)
            return self.whole(template, folder, [*chain, Path(f"<{name}>")])
        if "://" in name or "\\" in name:
            raise place.error(
                f"{short_repr(name)} is no path of a file beside the recipe: recipes extend no "
                "addresses, and folders are written with / between them"
            )
        path = folder / name
        try:
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise place.error(f"{short_repr(name)} cannot be followed: {error}") from error
        if Path(name).is_absolute() or not real.is_relative_to(self.root):
            raise place.error(
                f"{short_repr(name)} is outside of the recipe's folder, where it must not reach. "
                "Put the file there"
            )
        if real in chain:
            circle = " -> ".join(each.name for each in [*chain[chain.index(real) :], real])
            raise place.error(f"these recipes extend one another in a circle: {circle}")
        if real not in self.read:
            if len(self.read) >= MAX_FILES:
                raise place.error(f"the recipe extends more than {MAX_FILES} files")
            content = _read(real, place, name, self.near(name, folder))
            document = _relocated(_parsed(content, path), real.parent, self.root)
            self.read[real] = document
            self.read[real] = self.whole(document, path.parent, [*chain, real])
        return self.read[real]

    def near(self, name: str, folder: Path) -> str:
        """Return what may be meant by a name that stands for nothing: files and templates."""
        above = PurePosixPath(name).parent
        there: list[str] = []
        if (inside := (folder / above).resolve()).is_relative_to(self.root) and inside.is_dir():
            files = [each for each in inside.iterdir() if each.suffix in _SUFFIXES]
            there = sorted((above / each.name).as_posix() for each in files)
        return did_you_mean(name, [*there, *self.registry.names("template")])

    def template(self, name: str, place: Any, folder: Path) -> RecipeDocument:
        """Return what a plugin offers under a name."""
        try:
            offer: Named[Any] = self.registry.resolve("template", name)
        except TvcError as error:
            templates = self.registry.names("template")
            what = f"{short_repr(name)} is neither a file (.yaml, .yml) nor a template."
            there = f"The templates are: {join_names(templates)}"
            problem = f"{what}{self.near(name, folder)} {there}"
            said = str(error) if name.partition(":")[2] or name in templates else problem
            raise place.error(said) from error
        with foreign(RecipeError, f"{place}: the template {offer.qualified} cannot be made"):
            data = offer.load()()
        if not isinstance(data, Mapping):
            raise place.error(f"the template {offer.qualified} is no mapping")
        return RecipeDocument(
            data=data, place=replace(place, path=(), marks={(): (place.mark, place.mark)})
        )


def _read(real: Path, place: Any, name: str, near: str) -> bytes:
    what = short_repr(name)
    try:
        # a pipe would be waited for, and a device never ends; a link was followed before
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        number = os.open(real, os.O_RDONLY | flags | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise place.error(f"{what} cannot be read: {reason}.{near}") from error
    try:
        regular = stat.S_ISREG(os.fstat(number).st_mode)
        with open(number, "rb", closefd=False) if regular else io.BytesIO() as file:
            content = file.read(MAX_BYTES + 1)
    finally:
        os.close(number)
    if not regular:
        raise place.error(f"{what} is not a regular file")
    if len(content) > MAX_BYTES:
        raise place.error(f"{what} is larger than the {MAX_BYTES:,} bytes that a recipe may have")
    return content


def _parsed(content: bytes, path: Path) -> RecipeDocument:
    try:
        document = RecipeDocument.parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: the recipe is not UTF-8 text (byte {error.start})") from error
    if not isinstance(document.data, Mapping):
        raise document.place.error("a recipe to extend is a mapping, with any keys of a recipe")
    return document


def _relocated(document: RecipeDocument, folder: Path, root: Path) -> RecipeDocument:
    """Return a recipe whose file of weights, which is named beside it, is named from the root."""
    backbone = document.data.get("backbone")
    weights = backbone.get("weights") if isinstance(backbone, Mapping) else None
    if not isinstance(weights, str) or "://" in weights:
        return document
    path, mark, entry = weights.partition("#")
    suffixes = {PurePosixPath(each).suffix for each in (path, weights)}
    if "/" not in path and suffixes.isdisjoint(_WEIGHTS):
        return document
    from_root = os.path.relpath(folder / path, root)
    from_root = from_root if "/" in from_root else f"./{from_root}"
    moved = {**backbone, "weights": f"{from_root}{mark}{entry}"}
    return replace(document, data={**document.data, "backbone": moved})


def _check_removals(own: Mapping[str, Any], inherited: Mapping[str, Any], place: Any) -> None:
    """Refuse to take away a patch that is not inherited."""
    patches, known = (
        found.get("patches") if isinstance(found := each.get("backbone"), Mapping) else None
        for each in (own, inherited)
    )
    if not isinstance(patches, Mapping):
        return
    known = known if isinstance(known, Mapping) else {}
    for target, value in patches.items():
        if value is None and target not in known:
            there = what_there_is(str(target), [str(each) for each in known], "Inherited are:")
            raise (place / "backbone" / "patches" / target).error(
                f"null takes an inherited patch away, and none is inherited there.{there}"
            )


def _merged(
    base: Mapping[str, Any],
    base_marks: dict[Any, Any],
    over: Mapping[str, Any],
    over_marks: dict[Any, Any],
    path: tuple[Any, ...] = (),
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Return two recipes as one, and the marks of its values."""
    merged, marks = dict(base), dict(base_marks)
    for key, value in over.items():
        here = (*path, key)
        before = merged.get(key)
        if here == ("backbone",):  # its short form
            before = {"name": before} if isinstance(before, str) else before
            value = {"name": value} if isinstance(value, str) else value
        if value is None and path == ("backbone", "patches") and key in merged:
            del merged[key]
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key], marks = _merged(before, marks, value, over_marks, here)
        else:
            merged[key] = value
            marks = {p: both for p, both in marks.items() if p[: len(here)] != here}
            inside = {p: both for p, both in over_marks.items() if p[: len(here)] == here}
            marks.update(inside)
        if here in over_marks:
            marks[here] = over_marks[here]
    return merged, marks


def _size(data: Any) -> int:
    if isinstance(data, Mapping):
        return 1 + sum(map(_size, data.values()))
    return 1 + sum(map(_size, data)) if isinstance(data, list) else 1
