"""Open exported files, and repeat their proofs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvc_core import (
    HybridModel,
    ParameterError,
    Registry,
    WeightsError,
    check_hybrid,
    digest_of_tensors,
    foreign,
)

from .certificate import Certificate, Trial, read_certificate
from .exporting import judged
from .photos import Photo, check_photos, read_photos
from .proving import inputs_for, misses, noise, outputs_of, photo_inputs, repeat, try_input
from .registry import check_installed, format_of

__all__ = ["ExportedModel", "open_exported", "verify"]


class ExportedModel:
    """An exported file that runs: a function of images to a list of outputs, an array for each
    head.

    Args:
        path: the file.
        certificate: of it.
        run: what runs it.
    """

    def __init__(self, path: Path, certificate: Certificate, run: Any) -> None:
        self.path, self.certificate = path, certificate
        self.runtime: str = run.runtime
        self.precision: str = run.precision
        self._run = run

    def __call__(self, images: Any) -> list[Any]:
        """Run the file.

        Args:
            images: [N, C, H, W], a float32 array or tensor.

        Raises:
            ParameterError: another shape or type than the file takes; the message names both.
        """
        if not isinstance(images, torch.Tensor):
            images = np.asarray(images)
        if (kind := str(images.dtype).removeprefix("torch.")) != "float32":
            raise ParameterError(f"{self.path}: images of {kind} were given, and it takes float32")
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu().numpy()
        self.certificate.claims.check(images.shape, str(self.path))
        with foreign(WeightsError, f"{self.path}: fails on images {list(images.shape)}"):
            found: list[Any] = self._run(np.ascontiguousarray(images))
        return found


def open_exported(path: str | Path, *, registry: Registry | None = None) -> ExportedModel:
    """Open an exported file in its runtime.

    Args:
        path: the file.
        registry: where its format is looked up; by default what is installed.

    Raises:
        WeightsError: it is not there, damaged, or not as it was when it was proved.
        PluginError: its runtime is not installed.
        ParameterError: nothing runs it here.
    """
    path, registry = Path(path), registry or Registry()
    exporter = format_of(path, registry)
    check_installed(exporter)
    certificate = read_certificate(path, registry=registry)
    if not exporter.spec.run:
        raise ParameterError(f"{path}: nothing runs the format {exporter.spec.name!r} here")
    with foreign(WeightsError, f"{path}: cannot be opened, or is damaged"):
        run = exporter.load("run")(path)
    return ExportedModel(path, certificate, run)


def verify(
    path: str | Path,
    *,
    model: HybridModel | None = None,
    shapes: Sequence[Sequence[int]] = (),
    photos: str | Path | None = None,
    registry: Registry | None = None,
) -> tuple[Trial, ...]:
    """Repeat the proof of an exported file: its digest, and its answers on the inputs of the
    certificate, against torch's of then; with a model, also on new ones, against torch's of now.

    Args:
        path: the file.
        model: that it was exported from.
        shapes: of noise to try [N, C, H, W], with `model`.
        photos: a folder of photos to try, with `model`.
        registry: where its format is looked up; by default what is installed.

    Returns:
        What was tried.

    Raises:
        WeightsError: the file is another one than the one that was proved, or an answer is.
        ParameterError: `model` is not a hybrid; a shape or photo outside of what the file was
            proved for; photos or shapes without a model to compare with; or shapes of noise for a
            quantized file.
    """
    if model is not None:
        check_hybrid(model, "verify")
    exported = open_exported(path, registry=registry)
    certificate, run = exported.certificate, exported._run
    for shape in shapes:
        certificate.claims.check(shape, str(path))
    found = certificate.source["sha256"]
    if model is not None:
        found = digest_of_tensors(model.state_dict())
    if found != certificate.source["sha256"]:
        raise WeightsError(
            f"{path}: was exported from another model: that one's tensors have the sha256 "
            f"{certificate.source['sha256'][:16]}, and this one's {found[:16]}"
        )
    if model is None and (shapes or photos):
        what = "for images of other sizes" if shapes else "for photos, and how they are prepared"
        raise ParameterError(
            f"{path}: which outputs are right {what}, only the model can say: --model MODEL"
        )
    if certificate.int8 is not None and shapes:
        raise ParameterError(
            f"{path}: is in int8, whose answers on noise are not torch's: shapes of noise show "
            "nothing of it, and --photos does"
        )
    given: dict[str, Photo] = {}
    if model is not None and photos is not None:
        given = {each.name: each for each in read_photos(Path(photos), model)}
        check_photos(given.values(), certificate.claims, f"{path} was proved for")
    known = {each.name for each in certificate.trials}
    tolerance = certificate.tolerance
    with foreign(WeightsError, f"{path}: the proof in its certificate cannot be repeated"):
        tried = [
            repeat(trial, run, tolerance, given.get(trial.name or ""))
            for trial in certificate.trials
            if trial.name is None or trial.name in given
        ]
    if model is not None:
        reference = copy.deepcopy(model).cpu().float().eval()
        inputs = [*photo_inputs([each for name, each in given.items() if name not in known])]
        if certificate.int8 is None:
            drawn = [noise(shape, 2000 + number) for number, shape in enumerate(shapes)]
            inputs += drawn or inputs_for(certificate.claims, seed=1000)
        tried += [
            try_input(trial, images, outputs_of(reference, images), run, tolerance)
            for trial, images in inputs
        ]
    if certificate.int8 is not None:
        _judge(certificate, tried, given, run, Path(path))
    elif wrong := [text for trial in tried if (text := misses(trial, tolerance))]:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise WeightsError(f"{path}: does not give torch's answers: {wrong[0]}{more}")
    return tuple(tried)


def _judge(
    certificate: Certificate, tried: Sequence[Trial], given: Any, run: Any, path: Path
) -> None:
    """Count again on the photos of a quantized file's proof, where all of them are given."""
    assert certificate.int8 is not None
    proved = {each.name for each in certificate.trials}
    own = [each for each in tried if each.name in proved]  # photos that are new judge nothing
    if len(own) == certificate.int8["judged"]:
        photos = [given[each.name] for each in own]
        calibrated, most = certificate.int8["calibrated"], certificate.int8["max_drop"]
        judged(own, photos, run, calibrated, most, path)
