"""From what a user names to a page or a picture, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tvc_core import BackboneError, HybridModel

from .cam import ClassMap, class_map, gate_maps
from .comparing import Comparison, compare_models
from .facts import ModelFacts, inspect_model
from .gate_log import gate_chart, read_gate_log
from .page import Picture, render_page
from .pictures import data_address, map_picture, open_photo, prepared, strip_picture

__all__ = ["Looked", "cam_picture", "inspect_page", "look_at", "page_of"]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was seen of one or two models.

    Args:
        facts: of the first.
        others: of the second; None where there is none, like `comparison`.
        comparison: in what they differ.
        notes: what the reader is to know of it.
    """

    facts: ModelFacts
    others: ModelFacts | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()


def look_at(
    model: HybridModel, other: HybridModel | None, *, size: int | Sequence[int] | None = None
) -> Looked:
    """Return the facts of a model, and in what another one differs.

    Both get images of the same size, if the other one takes those; else it gets its own, and a note
    says so.

    Args:
        model: the first.
        other: the second, or None.
        size: side of the image, or [height, width]; by default those at which
            `describe_model` looks at the first [pixels].

    Raises:
        TvcError: a model cannot run.
    """
    facts = inspect_model(model, size=size)
    if other is None:
        return Looked(facts=facts)
    notes: tuple[str, ...] = ()
    try:
        others = inspect_model(other, size=facts.image[2:])
    except BackboneError:
        others = inspect_model(other)
        notes = (
            f"{others.name} takes no images of {facts.image[2]} x {facts.image[3]} pixels, so its "
            f"shapes and costs are those of {others.image[2]} x {others.image[3]}",
        )
    comparison = compare_models(model, other, facts, others)
    return Looked(facts=facts, others=others, comparison=comparison, notes=notes)


def inspect_page(
    model: HybridModel,
    other: HybridModel | None = None,
    *,
    photo: str | Path | None = None,
    gates: str | Path | None = None,
    target: int | str | None = None,
    size: int | Sequence[int] | None = None,
    source: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Return a page on a model as HTML, which opens offline. The models are as before.

    Args:
        model: the hybrid.
        other: another one, with which it is compared.
        photo: a photo, on which its class activation map and gate maps are drawn.
        gates: a file that a `GateLog` wrote, which is drawn.
        target: number or name of the class of the map; None for the one with the largest logit.
        size: side of the image that is sent through, or [height, width]; by default those at which
            `describe_model` looks at the model [pixels].
        source: where the model came from, such as a file's name.
        notes: what the reader is to know.

    Raises:
        TvcError: what is given cannot be read, or the model cannot run.
    """
    _, page = page_of(
        model, other, photo=photo, gates=gates, target=target, size=size, source=source, notes=notes
    )
    return page


def page_of(
    model: HybridModel,
    other: HybridModel | None,
    *,
    photo: str | Path | None,
    gates: str | Path | None,
    target: int | str | None,
    size: int | Sequence[int] | None,
    source: str,
    notes: Sequence[str],
) -> tuple[Looked, str]:
    """Return what `look_at` does, and the page of it that `inspect_page` returns."""
    said = list(notes)
    opened = None if photo is None else open_photo(photo)  # before what takes long
    charts = ""
    if gates is not None:
        lines, broken = read_gate_log(gates)
        charts = gate_chart(lines)
        said += broken
        if not charts:
            said.append(f"{gates} has no numbers of patches, so nothing of it is drawn")
    pictures = [] if opened is None else _pictures(model, opened, str(photo), target)
    seen = look_at(model, other, size=size)
    page = render_page(
        seen.facts,
        source=source,
        comparison=seen.comparison,
        other=seen.others,
        pictures=pictures,
        charts=charts,
        notes=[*said, *seen.notes],
    )
    return seen, page


def cam_picture(
    model: HybridModel,
    photo: str | Path,
    target: int | str | None = None,
    *,
    layer: str | None = None,
) -> tuple[Image.Image, ClassMap]:
    """Return a photo as the model sees it with the class activation map over it, and the map.

    Args:
        model: the hybrid.
        photo: path of the photo.
        target: number or name of the class; None for the one with the largest logit.
        layer: path of the module to look at instead of the last stage.

    Raises:
        TvcError: the photo cannot be read, there is no such class, or the model has no map.
    """
    image, seen = prepared(model, open_photo(photo), str(photo))
    found = class_map(model, image, target, layer=layer)
    return map_picture(seen, found.values), found


def _pictures(
    model: HybridModel, photo: Image.Image, name: str, target: int | str | None
) -> list[Picture]:
    image, seen = prepared(model, photo, name)
    found = class_map(model, image, target)
    pictures = [
        Picture(title="what the model sees", address=data_address(seen)),
        Picture(
            title=f"{found.name} (logit {found.score:.4g}) at {found.layer}: red speaks for the "
            "class, blue against it",
            address=data_address(map_picture(seen, found.values)),
        ),
    ]
    for gate in gate_maps(model, image):
        low, high = float(gate.values.min()), float(gate.values.max())
        if gate.is_spatial:
            drawn = map_picture(seen, gate.values, signed=False)
            what = "mean gate of the channels at each pixel, red where it is largest"
        else:
            drawn = strip_picture(gate.values)
            what = f"gates of the {len(gate.values)} channels, white where it is largest"
        pictures.append(
            Picture(
                title=f"{gate.path}: {what}; {low:.4g} to {high:.4g}", address=data_address(drawn)
            )
        )
    return pictures
