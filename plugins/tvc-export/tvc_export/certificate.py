"""What is known of an exported file, and how it was proved: plain data that stays with it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from tvc_core import Named, WeightsError, foreign

from .claims import Claims
from .kinds import ExporterSpec
from .registry import format_of

__all__ = [
    "Certificate", "Trial", "beside", "in_one_line", "read_certificate", "write_certificate",
]  # fmt: skip

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One input, and what came out.

    Args:
        input: "noise", "zeros" or "photo".
        shape: [N, C, H, W].
        seed: of noise.
        name: of a photo's file.
        sha256: of the input's numbers, float32.
        difference: largest absolute difference of an output from torch's.
        largest: largest absolute output of torch's.
        equal: images with the same answer, which is the largest output of each head.
        expected: torch's outputs, float32 in base64, one text for each head.
    """

    input: str
    shape: tuple[int, ...]
    seed: int | None = None
    name: str | None = None
    sha256: str = ""
    difference: float = 0.0
    largest: float = 0.0
    equal: int = 0
    expected: tuple[str, ...] = ()

    def allowed(self, tolerance: float) -> float:
        """Return by how much an output may differ: ten times as much on zeros, whose outputs are
        small, while what rounding does to them is not (torch itself is 3e-6 off its float64 there
        on Lite0, and 6e-7 on noise).
        """
        return (10 if self.input == "zeros" else 1) * tolerance * self.largest


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What an exported file is, and the proof that it gives torch's answers.

    Args:
        format: name of the exporter, with its owner.
        source: name of the model, and sha256 of its tensors.
        sha256: of the file without the certificate, and of what belongs to it.
        recipe: that builds the model, without weights of its own.
        classes: names, or None where none are known.
        preprocessing: how photos are prepared, or None where that is not known.
        versions: of what took part.
        precision: in which the runtime says that it computes.
        runtime: that was tried, with its version; empty where nothing was proved here.
        claims: for which images it holds.
        dropped: patches left out, since their gate is 0.
        folded: patches that are in the weights beside them.
        trials: inputs that were tried.
        tolerance: largest difference allowed, as part of the largest output; on zeros ten times as
            much.
        int8: of a quantized file: photos to calibrate and to judge, how many were right (or had
            the answer of torch) before and after, and what was allowed; else None.
    """

    format: str
    source: Mapping[str, str]
    sha256: str
    recipe: Mapping[str, Any]
    classes: Any
    preprocessing: Mapping[str, Any] | None
    versions: Mapping[str, str]
    precision: str
    runtime: str
    claims: Claims
    dropped: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    tolerance: float = 1e-5
    int8: Mapping[str, Any] | None = field(default=None)

    @property
    def proved(self) -> bool:
        """Whether answers were compared here."""
        return bool(self.runtime)

    @property
    def largest_difference(self) -> float:
        """The largest difference of an output on noise and photos, as part of the largest output of
        its input.
        """
        shares = (t.difference / (t.largest or 1) for t in self.trials if t.input != "zeros")
        return max(shares, default=0.0)

    @property
    def variation(self) -> float:
        """By how much an output of torch's differs from input to input at most, as part of the
        largest. Where this is no more than the tolerance allows, equal answers show nothing: those
        of random weights may be biases alone.
        """
        heads: dict[tuple[int, int], list[Any]] = {}  # outputs, by their number in each head
        for trial in self.trials:
            for head, text in enumerate(trial.expected):
                rows: np.ndarray = np.frombuffer(base64.b64decode(text), np.float32)
                rows = rows.reshape(trial.shape[0], -1)
                heads.setdefault((head, rows.shape[1]), []).append(rows)
        found = (np.concatenate(rows) for rows in heads.values())
        shares = (np.ptp(rows, axis=0).max() / (np.abs(rows).max() or 1) for rows in found)
        return max(map(float, shares), default=0.0)

    def to_json(self) -> str:
        """Return it as text."""
        data = {"certificate": VERSION, **asdict(self), "claims": self.claims.as_mapping()}
        return json.dumps(data, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> Certificate:
        """Return what `to_json` wrote.

        Raises:
            WeightsError: it is something else.
        """
        with foreign(WeightsError, f"{path}: its certificate cannot be read"):
            data = json.loads(text)
            if data.pop("certificate") != VERSION:
                raise ValueError("it is of another version of tvc-export")
            names = {each.name for each in fields(cls)}
            if set(data) != names:
                raise ValueError("it has other entries than a certificate has")
            data["claims"] = Claims.from_mapping(data["claims"])
            data["trials"] = tuple(
                Trial(
                    **{
                        **each,
                        "shape": tuple(map(int, each["shape"])),
                        "expected": tuple(map(str, each["expected"])),
                    }
                )
                for each in data["trials"]
            )
            data["tolerance"] = float(data["tolerance"])
            data["dropped"], data["folded"] = tuple(data["dropped"]), tuple(data["folded"])
            return cls(**data)

    def __str__(self) -> str:
        lines = [f"format: {self.format}, sha256 {self.sha256[:16]}"]
        lines.append(
            f"source: {in_one_line(self.source['name'])}, sha256 {self.source['sha256'][:16]}"
        )
        lines += [f"left out, since its gate is 0: {each}" for each in self.dropped]
        lines += [f"folded into the weights: {each}" for each in self.folded]
        lines.append(f"images: {self.claims}")
        if not self.proved:
            lines.append("answers: not proved here, since nothing runs this format here")
            return "\n".join(lines)
        lines.append(f"runs in: {self.runtime}, {self.precision}")
        for each in self.trials:
            shape = "x".join(map(str, each.shape))
            what = f"{each.input} {in_one_line(each.name)}" if each.name else each.input
            share = each.difference / (each.largest or 1)
            lines.append(
                f"  {what} {shape}: largest difference {share:.2g} of the largest output, "
                f"{each.equal} of {each.shape[0]} answers equal"
            )
        if self.int8 is not None:
            lines.append(
                f"int8: {self.int8['after']} of {self.int8['judged']} photos {self.int8['measure']}"
                f", {self.int8['before']} in torch; ranges from {self.int8['calibrated']} others"
            )
        else:
            lines.append(
                f"tolerance: {self.tolerance:g} of the largest output, on zeros ten times as much"
            )
        if self.variation < 100 * self.tolerance:
            lines.append(
                "little is shown by that: torch's own outputs differ from input to input by "
                f"{self.variation:.2g} of the largest, as those of weights that were never trained"
            )
        return "\n".join(lines)


def in_one_line(name: str) -> str:
    """Return a name as it stands in a table: what would end its line is written as Python does."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def beside(path: Path) -> Path:
    """Return where the certificate of a file lies whose format has no room for it."""
    return path.with_name(f"{path.name}.certificate.json")


def write_certificate(path: Path, exporter: Named[ExporterSpec], text: str) -> None:
    """Put a certificate into a file, or beside it."""
    if exporter.spec.store:
        exporter.load("store").write(path, text)
    else:
        beside(path).write_text(text, encoding="utf-8")


def digest_and_text(path: Path, exporter: Named[ExporterSpec]) -> tuple[str, str]:
    """Return the digest of a file, and the text of its certificate, empty where it has none."""
    if exporter.spec.store:
        text, digest = exporter.load("store").read(path)
        return digest, text
    text = beside(path).read_text(encoding="utf-8") if beside(path).is_file() else ""
    return _digest_of(path), text


def _digest_of(path: Path) -> str:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    found = hashlib.sha256()
    # by names that are the same on every system: Windows sorts paths without regard to case
    for file in sorted(files, key=lambda each: each.relative_to(path).parts):
        found.update(hashlib.sha256(file.read_bytes()).digest())
        found.update(file.relative_to(path).as_posix().encode())
    return found.hexdigest()


def read_certificate(path: str | Path, *, registry: Any = None) -> Certificate:
    """Return the certificate of an exported file.

    Args:
        path: the file.
        registry: where its format is looked up; by default what is installed.

    Raises:
        WeightsError: the file is not there, damaged, has no certificate, or is not the one that the
            certificate was written for.
        UnknownNameError: no format has this suffix.
    """
    path = Path(path)
    exporter = format_of(path, registry)
    with foreign(WeightsError, f"{path}: cannot be read as {exporter.spec.name}, or is damaged"):
        digest, text = digest_and_text(path, exporter)
    if not text:
        raise WeightsError(
            f"{path}: has no certificate: it was not written by tvc export, or by another tool "
            "after it"
        )
    certificate = Certificate.from_json(text, path)
    if certificate.sha256 != digest:
        raise WeightsError(
            f"{path}: was changed after it was proved: its content has the sha256 {digest[:16]}, "
            f"and its certificate is for {certificate.sha256[:16]}"
        )
    return certificate
