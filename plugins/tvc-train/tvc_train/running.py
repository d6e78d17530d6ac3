"""The folder of a run and its key: what has to be equal so that a run goes on as it began."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tvc_core import join_names, short_repr

from .errors import TrainingError
from .planning import Plan
from .runs import Run
from .settings import HARMLESS

__all__ = ["Key", "check_key", "run_folder"]

RUNS = Path("runs")
_ABOUT_DATA = ("path", "download", "max_bad", "max_pixels", "check", "max_cache")
"""Keys of the section `data` that change no image; the images themselves are hashed."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What has to be equal to go on.

    Args:
        values: recipe, seed and data.
        versions: of what computes; another one is said, and may give other bits.
    """

    values: Mapping[str, Any]
    versions: Mapping[str, str]

    @staticmethod
    def of(plan: Plan, chosen: Mapping[str, Any]) -> Key:
        """Return the key of a plan.

        Args:
            plan: what is trained.
            chosen: values that were found out, for what the recipe left open.

        Raises:
            DataError: an image cannot be read.
            TrainingError: the file of weights cannot be read.
        """
        model = plan.recipe.to_mapping()
        if (own := plan.given.own_weights) is not None:  # wherever it lies
            file, entry = own
            model["backbone"]["weights"] = f"sha256 {_sha256(file)} {entry or ''}".strip()
        training = _decided(plan, chosen)
        settings = plan.data_settings.to_mapping()
        values = {
            "model": {k: v for k, v in model.items() if k not in ("name", "description", "seed")},
            "training": {k: v for k, v in training.items() if k not in (*HARMLESS, "seed")},
            "seed": plan.training.seed,
            "data": {k: v for k, v in settings.items() if k not in _ABOUT_DATA},
            "classes": list(plan.data.classes),
            "images": {
                part: {"count": len(samples), "sha256": samples.digest()}
                for part, samples in (("train", plan.data.train), ("val", plan.data.val))
            },
        }
        names = ("tvc-core", "tvc-train", "torch", "torchvision")
        return Key(values=_plain(values), versions={n: metadata.version(n) for n in names})


def check_key(known: Mapping[str, Any], plan: Plan, run: Run) -> Key:
    """Return the key of a plan with what a run chose for it; refuse to go on with another run.

    Raises:
        TrainingError: something is different; the message says what.
    """
    said = known.get("key")
    if not isinstance(said, Mapping) or not isinstance(known.get("chosen"), Mapping):
        raise TrainingError(f"{run.key} is damaged: the keys 'key' and 'chosen' are missing")
    key = Key.of(plan, known["chosen"])
    differences = list(_differences(said, key.values, ""))
    if differences:
        raise TrainingError(
            f"{run.folder} is another run, which cannot go on with this: "
            f"{join_names(differences, most=6)}. Start in another folder with --out"
        )
    other = [
        f"{name} {version}, now {key.versions[name]}"
        for name, version in (known.get("versions") or {}).items()
        if name in key.versions and version != key.versions[name]
    ]
    if other:
        warnings.warn(
            f"{run.folder} began with {join_names(other)}: the result may differ in its last bits",
            UserWarning,
            stacklevel=2,
        )
    return key


def _decided(plan: Plan, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `training` with what was chosen for what it leaves open: the recipe that
    is written into a run goes on with it, as does the one that it began with.
    """
    said = plan.given.sections.get("training") or {}
    found = {key: value for key, value in said.items() if value is not None}
    found.setdefault("normalization", "auto")
    for key in ("batch_size", "layout", "normalization"):
        if found.get(key) == "auto":
            found[key] = chosen.get(key, "auto")
    found["phases"] = [each.to_mapping() for each in plan.training.phases]
    for phase, other in zip(found["phases"], chosen.get("phases", ()), strict=False):
        if phase["rate"] == "auto":
            phase["rate"] = other["rate"]
    return found


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(n for n in new if n not in old)]:
            below = f"{path}.{name}" if path else str(name)
            if name not in old or name not in new:
                a, b = (short_repr(e[name]) if name in e else "absent" for e in (old, new))
                yield f"{below} was {a}, and is {b}"
            else:
                yield from _differences(old[name], new[name], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{path}[{number}]")
    elif old != new or type(old) is not type(new):
        yield f"{path} was {short_repr(old)}, and is {short_repr(new)}"


def _sha256(file: Path) -> str:
    whole = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                whole.update(part)
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror or error}") from error
    return whole.hexdigest()


def _plain(value: Any) -> Any:
    """Return data as JSON gives it back."""
    import json

    return json.loads(json.dumps(value, default=str))


def run_folder(
    out: str | Path | None, name: str, *, resume: bool, force: bool = False, data: str | None = None
) -> str:
    """Return the folder of a run.

    Args:
        out: which was asked for; None for runs/NAME, or the next free name.
        name: of the runs.
        resume: go on with a run that is there.
        force: another run may take the place of what is there.
        data: the folder of the images, where a run must not lie.

    Raises:
        TrainingError: there is a run or something else, and it is not to go on; or it would lie
            among the images.
    """
    found = _run_folder(out, name, resume, force)
    if data is not None and Path(data).is_dir():
        images = Path(data).resolve()
        if Path(found).resolve().is_relative_to(images):
            raise TrainingError(
                f"the run would be {found}, which is in {images}, among the images, and be taken "
                "for some of them: name another folder with --out"
            )
    return found


def _run_folder(out: str | Path | None, name: str, resume: bool, force: bool) -> str:
    if out is None:
        free = Run.new_name(RUNS, name)
        if not resume:
            return str(free)
        number = 1
        while (RUNS / f"{name}-{number + 1}").exists():
            number += 1
        return str(RUNS / (f"{name}-{number}" if number > 1 else name))
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"--out {folder} is a file; name a folder")
    run = Run(folder=folder)
    if force or (resume and run.key.exists()):
        return str(folder)
    if run.key.exists():
        raise TrainingError(
            f"{folder} has a run already: --resume goes on with it, --out names another folder, "
            "and --force starts over in this one"
        )
    if there := [each.name for each in run.content if each.exists()]:
        raise TrainingError(
            f"{folder} has {join_names(there)} already, and no run to go on with: a new one would "
            "replace that. Name another folder with --out, or replace it with --force"
        )
    return str(folder)
