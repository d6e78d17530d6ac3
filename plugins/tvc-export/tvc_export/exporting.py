"""Write a model in a format, prove it, and only then put it where it was asked for."""

from __future__ import annotations

import copy
import math
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvc_core import (
    BackboneError,
    HybridModel,
    Named,
    ParameterError,
    PluginInfo,
    Registry,
    WeightsError,
    check_hybrid,
    check_target,
    digest_of_tensors,
    foreign,
    join_names,
    short_repr,
    what_there_is,
)

from .certificate import Certificate, Trial, beside, digest_and_text, write_certificate
from .claims import AXES
from .kinds import ExporterSpec
from .models import facts_of
from .photos import Photo, check_photos, find_photos, read_photos
from .privacy import check_private, words_in
from .program import ExportOptions, ProgramFacts, make_program
from .proving import Run, inputs_for, misses, outputs_of, photo_inputs, try_input
from .registry import check_installed, files_beside, find_format

__all__ = ["check_output", "export_model"]

CALIBRATED = 32
"""Photos that ranges of activations are taken from, at most [photos]."""


def check_output(
    path: Path,
    exporter: Named[ExporterSpec],
    *,
    int8: bool = False,
    keep_names: bool = False,
    force: bool = False,
) -> None:
    """Refuse what can be refused before a model is built.

    Raises:
        PluginError: packages of the format are not installed.
        ParameterError: the suffix is another format's, or the format has no int8, or names of its
            own for parameters; or the file cannot be written, or one that belongs to it is there.
        WeightsError: a folder is in its place that is no export.
    """
    check_installed(exporter)
    name, suffix = exporter.spec.name, exporter.spec.suffix
    if int8 and not exporter.spec.int8:
        raise ParameterError(f"the format {name!r} cannot be quantized here: --int8 is for onnx")
    if keep_names and not exporter.spec.names:
        raise ParameterError(
            f"the format {name!r} has names of its own for parameters, or none: --keep-names is "
            "for pt2 and onnx"
        )
    if keep_names and int8:
        raise ParameterError(
            "in int8 parameters are others, with other names: --int8 or --keep-names, not both"
        )
    if path.suffix != suffix:
        right = (path.resolve() if path.name in ("", "..") else path).with_suffix(suffix).name
        raise ParameterError(f"{path}: files of the format {name!r} end in {suffix}: {right!r}")
    if path.is_dir() and not beside(path).exists():
        raise WeightsError(f"{path}: is a folder, which tvc export did not write")
    for each in (path, *files_beside(path, exporter)):
        if not each.is_dir():
            check_target(each, force=force)
        elif not force:  # of a format whose files are folders
            raise ParameterError(f"{each} exists: --force, or force=True, puts the new one there")


def export_model(
    model: HybridModel,
    format: str,
    path: str | Path,
    *,
    dynamic: Sequence[str] = ("batch",),
    size: int | Sequence[int] | None = None,
    photos: str | Path | None = None,
    int8: str | Path | None = None,
    max_drop: int | None = None,
    keep_names: bool = False,
    tolerance: float | None = None,
    limit: float = 120,
    force: bool = False,
    name: str = "",
    registry: Registry | None = None,
) -> Certificate:
    """Write a model in a format, with the proof that it gives torch's answers; a file that fails
    the proof is not written.

    Args:
        model: stays unchanged. Patches whose gate is exactly 0 are left out of the file.
        format: name of an exporter.
        path: the file.
        dynamic: what of the images may vary: "batch", "hw" (height and width).
        size: side of the images that the export sees, or height and width [pixels]; by default the
            preprocessing's.
        photos: a folder of photos to try as well.
        int8: a folder of photos: up to 32 of them say the ranges of activations, and the others
            judge the result.
        max_drop: how many photos fewer may be right in int8 than in torch, or where their classes
            are not known, have another answer [photos]; by default 5 percent of those that judge.
        keep_names: all parameters keep their names: nothing is folded, and patches whose gate is
            0 are in the file as well.
        tolerance: largest difference of an output, as part of the largest output of its input, on
            zeros ten times as much; by default the format's, which is 1e-5, and 1e-4 in litert.
        limit: for how long torch.export may compute what the network asks of sizes [s].
        force: replace a file that is there.
        name: of the model, for the certificate.
        registry: where formats are looked up; by default what is installed.

    Returns:
        The certificate, which is inside the file or beside it.

    Raises:
        UnknownNameError: no plugin offers the format.
        PluginError: packages of the format are not installed.
        ParameterError: `model` is not a hybrid; an argument does not fit; or a photo cannot be read
            or is prepared in a size that the export is not for.
        BackboneError: the format does not take the network, or not with these sizes.
        WeightsError: the file cannot be written, or its answers are others than torch's.
    """
    check_hybrid(model, "export_model")
    path, registry = Path(path), registry or Registry()
    sides = _check_arguments(dynamic, size, tolerance, max_drop, limit)
    exporter = find_format(format, registry)
    tolerance = exporter.spec.tolerance if tolerance is None else tolerance
    check_output(path, exporter, int8=int8 is not None, keep_names=keep_names, force=force)
    if (photos or int8) and not exporter.spec.run:
        raise ParameterError(f"nothing runs {exporter.spec.name!r} here, so photos prove nothing")
    judging, calibrating = _chosen(photos, int8, model)
    exported, facts = make_program(
        model, dynamic=dynamic, size=sides, keep_names=keep_names, fold=int8 is None, limit=limit
    )
    check_photos((*judging, *calibrating), facts.claims, "the export is for")
    options = ExportOptions(
        keep_names=keep_names,
        calibration=np.stack([each.image.numpy() for each in calibrating]) if calibrating else None,
        outputs=facts.outputs,
    )
    with _beside(path) as folder:
        draft = folder / path.name
        advice = "With --dynamic batch it may: sizes are numbers there" if "hw" in dynamic else ""
        what = f"{exporter.qualified} cannot write the network"
        with foreign(BackboneError, what, advice=advice):
            exporter.load()(exported, draft, options)
        del exported  # the model was in memory twice, and the file comes now
        run: Any = None
        trials: tuple[Trial, ...] = ()
        quantized = None
        if exporter.spec.run:
            with foreign(WeightsError, f"{exporter.qualified} cannot read the file that it wrote"):
                run = exporter.load("run")(draft)
            trials, quantized = _prove(
                run, _on_cpu(model), facts, judging, len(calibrating), max_drop, tolerance, path
            )
        certificate = Certificate(
            format=exporter.qualified,
            source={
                "name": name or type(model).__name__,
                "sha256": digest_of_tensors(model.state_dict()),
            },
            sha256=digest_and_text(draft, exporter)[0],
            versions=_versions(exporter, registry),
            precision=run.precision if run else "",
            runtime=run.runtime if run else "",
            claims=facts.claims,
            dropped=facts.dropped,
            folded=facts.folded,
            trials=trials,
            tolerance=tolerance,
            int8=quantized,
            **facts_of(model),
        )
        del run  # closes the file, which Windows would not move
        text = certificate.to_json()
        write_certificate(draft, exporter, text)
        check_private(folder, path, words_in(text, *_names_in(model)))
        _move(folder, path, force=force)
    return certificate


def _check_arguments(
    dynamic: Sequence[str],
    size: int | Sequence[int] | None,
    tolerance: float | None,
    max_drop: int | None,
    limit: float,
) -> tuple[int, int] | None:
    """Refuse what is no such argument of an export, and return height and width of `size`.

    Raises:
        ParameterError: one is no such thing; the message names it.
    """
    if isinstance(dynamic, str) or not isinstance(dynamic, Sequence):
        raise ParameterError(f"dynamic is a list of {join_names(AXES)}, not {short_repr(dynamic)}")
    for each in dynamic:
        if each not in AXES:
            raise ParameterError(f"dynamic: {each!r} is unknown.{what_there_is(each, AXES)}")
    for name, value in (("tolerance", tolerance), ("limit", limit)):
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (fine and 0 < value < math.inf):
            raise ParameterError(f"{name} is a positive number, not {short_repr(value)}")
    if max_drop is not None and not _is_whole(max_drop, 0):
        raise ParameterError(f"max_drop is a whole number of photos, not {short_repr(max_drop)}")
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(_is_whole(side, 1) for side in sides):
        raise ParameterError(
            "size is a whole number of pixels, or height and width, each at least 1, not "
            f"{short_repr(size)}"
        )
    return sides


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _chosen(
    photos: str | Path | None, int8: str | Path | None, model: HybridModel
) -> tuple[list[Photo], list[Photo]]:
    """Return the photos that judge, and those that calibrate."""
    judging = read_photos(Path(photos), model) if photos is not None else []
    if int8 is None:
        return judging, []
    found = len(find_photos(Path(int8)))
    if found < 4:
        raise ParameterError(
            f"{int8}: {found} photos, and int8 needs at least 4: half of them, and 32 at most, say "
            "the ranges of activations, and the others judge"
        )
    every = read_photos(Path(int8), model)
    number = min(CALIBRATED, found // 2)
    taken = {turn * found // number for turn in range(number)}  # spread over the folder
    calibrating = [each for turn, each in enumerate(every) if turn in taken]
    known = {each.name: each.image for each in judging}  # a proof finds its photos by their names
    if other := [e.name for e in every if e.name in known and not e.image.equal(known[e.name])]:
        raise ParameterError(
            f"{photos} and {int8} have different photos named {join_names(other, most=4)}, which a "
            "proof could not tell apart: rename them"
        )
    rest = [each for turn, each in enumerate(every) if turn not in taken and each.name not in known]
    return judging + rest, calibrating


def _prove(
    run: Run,
    reference: HybridModel,
    facts: ProgramFacts,
    photos: Sequence[Photo],
    calibrated: int,
    max_drop: int | None,
    tolerance: float,
    path: Path,
) -> tuple[tuple[Trial, ...], dict[str, Any] | None]:
    """Try inputs, and return what came out.

    Raises:
        WeightsError: an answer is another one.
    """
    inputs = [*photo_inputs(photos)]
    if not calibrated:
        inputs = [*inputs_for(facts.claims, seed=0), *inputs]
    trials = tuple(
        try_input(trial, images, outputs_of(reference, images), run, tolerance)
        for trial, images in inputs
    )
    if calibrated:
        return trials, judged(trials, photos, run, calibrated, max_drop, path)
    if wrong := [text for trial in trials if (text := misses(trial, tolerance))]:
        raise WeightsError(
            f"{path} is not written, since it does not give torch's answers: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "")
            + ". --tolerance allows more, where that is enough for you"
        )
    return trials, None


def _on_cpu(model: HybridModel) -> HybridModel:
    """Return the model that the file is compared with: a copy, unless it is as it should be."""
    tensors = (*model.parameters(), *model.buffers())
    as_it_is = all(
        each.device.type == "cpu" and each.dtype in (torch.float32, torch.int64) for each in tensors
    ) and not any(module.training for module in model.modules())
    return model if as_it_is else copy.deepcopy(model).cpu().float().eval()


def judged(
    trials: Sequence[Trial],
    photos: Sequence[Photo],
    run: Run,
    calibrated: int,
    max_drop: int | None,
    path: Path,
) -> dict[str, Any]:
    """Return how many photos are right in int8.

    Raises:
        WeightsError: too few.
    """
    labels = [photo.label for photo in photos]
    before = sum(
        expected_answer(trial) == label for trial, label in zip(trials, labels, strict=True)
    )
    # names that torch is right on none of say something else, such as a camera's numbers
    labeled = None not in labels and before > 0
    if labeled:
        answers = [int(run(photo.image[None].numpy())[0].argmax()) for photo in photos]
        after = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    else:
        before, after = len(photos), sum(trial.equal for trial in trials)
    allowed = len(photos) // 20 if max_drop is None else max_drop
    if before - after > allowed:
        what = "are right" if labeled else "have torch's answer"
        raise WeightsError(
            f"{path} is not written, since int8 loses {before - after} of {len(photos)} photos, "
            f"and --max-drop allows {allowed}: {after} {what}, and {before} in torch"
        )
    return {
        "calibrated": calibrated,
        "judged": len(photos),
        "measure": "right" if labeled else "answered as in torch",
        "before": before,
        "after": after,
        "max_drop": allowed,
    }


def expected_answer(trial: Trial) -> int:
    """Return torch's answer for the one image of a trial."""
    import base64

    return int(np.argmax(np.frombuffer(base64.b64decode(trial.expected[0]), np.float32)))


def _versions(exporter: Named[ExporterSpec], registry: Registry) -> dict[str, str]:
    infos: list[PluginInfo] = list(registry.plugins)
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{info.owner: info.version for info in infos if info.owner.startswith("tvc-")},
    }
    found |= dict(map(_distribution_of, exporter.spec.modules))
    return {name: str(version) for name, version in found.items() if version}


def _distribution_of(module: str) -> tuple[str, str]:
    """Return name and version of what a module belongs to."""
    name = module.partition(".")[0]
    try:
        return name.replace("_", "-"), metadata.version(name)
    except metadata.PackageNotFoundError:  # under another name; looking through all takes a second
        owners = metadata.packages_distributions().get(name, ())
        return (owners[0], metadata.version(owners[0])) if owners else (name, "")


def _names_in(model: HybridModel) -> Iterator[str]:
    """Yield the names of a model's parts and of their classes."""
    for name, module in model.named_modules():
        yield f"{name} {type(module).__module__} {type(module).__qualname__}"
    yield from model.state_dict()


class _beside:  # noqa: N801  read as a verb: with _beside(path) as folder: ...
    """A folder next to a file, on its file system, which is gone at the end."""

    def __init__(self, path: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=".tvc-export.", dir=path.parent))

    def __enter__(self) -> Path:
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _move(folder: Path, path: Path, *, force: bool) -> None:
    """Put what was written in its place, the file itself last.

    Raises:
        WeightsError: another file is there, without `force`.
    """
    written = sorted(folder.iterdir(), key=lambda each: each.name == path.name)
    there = [each.name for each in written if path.with_name(each.name).exists()]
    if there and not force:
        raise WeightsError(
            f"{path} is not written, since {join_names(there)} is there beside it; --force puts "
            "the new one in its place"
        )
    for each in written:
        target = path.with_name(each.name)
        if target.is_dir():
            shutil.rmtree(target)
        each.replace(target)
