"""Write the card of a model from facts: what stands in it was read from the file or the model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tvc_core import FileInfo, HybridModel

__all__ = ["write_card"]

_MOST_NAMES = 100
"""Classes that are listed by name."""

_PREPARED = {
    "resize_size": "resize to [pixels]",
    "crop_size": "crop [pixels]",
    "resize": "resize to [pixels]",
    "size": "size [pixels]",
    "fit": "fit",
    "test_resize_size": "resize to, as evaluated [pixels]",
    "test_crop_size": "crop, as evaluated [pixels]",
    "squash": "resize without keeping the proportions",
    "interpolation": "interpolation",
    "mean": "mean",
    "std": "standard deviation",
}
"""Fields of what a file says of its preprocessing, and how the card calls them."""


def write_card(
    model: HybridModel,
    info: FileInfo,
    *,
    name: str,
    license: str,
    contradicts: str = "",
    metrics: Mapping[str, Any] | None = None,
    others: Iterable[tuple[str, bytes]] = (),
) -> str:
    """Return the card of a model, in Markdown with the header that hubs read.

    Args:
        model: as it was read from the file.
        info: what the file says.
        name: of the repository.
        license: of the model, as hubs write it.
        contradicts: why the license of the weights does not allow that, where the user insists.
        metrics: figures as they were given.
        others: names and contents of the files beside the model.
    """
    from huggingface_hub import ModelCardData

    classes = model.num_classes
    task = "image-classification" if classes else "image-feature-extraction"
    more: dict[str, Any] = {"license_name": "other"} if license == "other" else {}
    files = dict(others)
    if license == "other" and (text := next((n for n in files if "license" in n.lower()), "")):
        more["license_link"] = text
    header = ModelCardData(
        license=license,
        library_name="tvc",
        pipeline_tag=task,
        tags=["tvc", "pytorch", "safetensors"],
        **more,
    )
    sections = [
        f"# {_text(name.partition('/')[2])}",
        _about(model, info),
        _how_to(name, info),
        _section("Figures", ("what", "value"), _figures(model, info)),
        _section("Parts", ("part", "parameters", "trainable"), _parts(model)),
        _section("Patches", _PATCH, _patches(model), "The network is its backbone."),
        _classes(model),
        _section(
            "Images",
            ("what", "value"),
            _images(model, info),
            "The backbone has no pretrained weights, so nothing says how images are prepared.",
            note=_of_which(model, info),
        ),
        _section("Made with", ("distribution", "version"), sorted(info.versions.items())),
        _section("As given", ("what", "value"), _given(info, metrics), note=_NOT_MEASURED),
        _license(info, license, contradicts),
        _section("Other files", ("file", "bytes", "SHA-256"), _files(files)),
    ]
    text = "\n\n".join(section for section in sections if section)
    return f"---\n{header.to_yaml()}\n---\n\n{text}\n"


_PATCH = ("target", "operation", "block", "settings", "parameters", "gate")
_NOT_MEASURED = "By who pushed the model; tvc has not measured it."


def _about(model: HybridModel, info: FileInfo) -> str:
    recipe = info.recipe
    assert recipe is not None
    weights = f"the weights {_code(recipe.weights)}" if recipe.weights else "no pretrained weights"
    return (
        f"A vision model of [tvc](https://tvc.example/docs/): {_code(recipe.backbone)}, started "
        f"from {weights}, {_count(len(model.patch_records), 'patch')}, "
        f"{_count(model.num_classes, 'output')}. `recipe.yaml` describes it."
    )


def _how_to(name: str, info: FileInfo) -> str:
    owners = [each for each in info.versions if each.startswith("tvc-")]
    owners += [each for each in info.versions if not re.match(r"tvc-|torch", each)]
    install = " ".join(dict.fromkeys(["tvc-hub", *owners]))
    return (
        f"```sh\npip install {install}\n```\n\n```python\nimport tvc_core\nfrom tvc_hub import pull"
        f'\n\nmodel = tvc_core.load(pull("{name}"))\n```'
    )


def _figures(model: HybridModel, info: FileInfo) -> Iterator[tuple[str, Any]]:
    yield "parameters", model.count_parameters()
    yield "trainable parameters", model.count_parameters(trainable_only=True)
    yield "tensors in the file", len(info.tensors)
    yield "values in the file", info.num_values
    yield "bytes of the file", info.num_bytes
    yield "SHA-256 of the file", _sha256(info.path.read_bytes())
    yield "SHA-256 inside the file, of content and tensors", info.sha256
    yield "format", info.format


def _parts(model: HybridModel) -> Iterator[tuple[Any, ...]]:
    for part in model.freeze_report().parts:
        yield part.name, part.num_parameters, part.num_trainable


def _patches(model: HybridModel) -> Iterator[tuple[Any, ...]]:
    tensors = model.state_dict()
    for record in model.patch_records:
        size = sum(
            p.numel() for path in record.paths for p in model.get_submodule(path).parameters()
        )
        gates = [tensors[f"{path}.alpha"] for path in record.paths if f"{path}.alpha" in tensors]
        # nine digits give each float32 back
        values = ", ".join(f"{value:.9g}" for gate in gates for value in gate.float().flatten())
        settings = {**record.params, **record.options}
        written = _code(json.dumps(settings, default=str)) if settings else "-"
        block = _code(record.block) if record.block else "-"
        yield (
            _code(record.target), _code(record.op), block, written, size, values or "-"
        )  # fmt: skip


def _classes(model: HybridModel) -> str:
    lines = []
    for head in model.head_info:
        names = head.class_names or ()
        listed = ", ".join(map(_text, names[:_MOST_NAMES]))
        rest = len(names) - _MOST_NAMES
        listed += f", and {rest} more, which the file has" if rest > 0 else ""
        of = f"{_text(head.name)}: " if head.name else ""
        lines.append(f"{of}{head.num_classes}" + (f": {listed}" if listed else ", without names"))
    return "## Classes\n\n" + "\n\n".join(lines)


def _of_which(model: HybridModel, info: FileInfo) -> str:
    """Say of which weights the preprocessing is, where the model started from none or takes images
    of another kind.
    """
    said = info.preprocessing
    started = info.recipe is not None and info.recipe.weights
    name, channels = said.get("name"), len(said.get("mean") or ())
    if channels not in (0, model.num_channels):
        return (
            f"As for the backbone's weights, whose images have {channels} channels: those of this "
            f"model have {model.num_channels}, and are prepared in another way."
        )
    return "" if started or not name else f"As for the backbone's default weights, {_code(name)}."


def _images(model: HybridModel, info: FileInfo) -> Iterator[tuple[str, Any]]:
    crops = info.preprocessing.get("fit", "crop") == "crop"
    for key, called in _PREPARED.items():
        if key == "resize" and not crops:
            continue  # the side before a crop, which is not done
        if (value := info.preprocessing.get(key)) not in (None, False):
            plain = "yes" if value is True else value
            yield called, ", ".join(map(str, plain)) if isinstance(plain, (list, tuple)) else plain
    if info.preprocessing:
        yield "channels", model.num_channels


def _given(info: FileInfo, metrics: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    said = dict(_flat(info.metadata))
    given = dict(_flat(metrics or {}))
    for key, value in said.items():
        yield _text(f"{key}, in the file" if key in given else key), _text(value)
    for key, value in given.items():
        yield _text(key), _text(value)


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield what stands in a mapping and in those in it, without what has no value."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}: ")
        elif value not in (None, []):
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value)


def _license(info: FileInfo, license: str, contradicts: str) -> str:
    base = f"{_text(info.license)}." if info.license else "its publisher states none."
    recipe = info.recipe
    text = f"## License\n\nThis model: {license}."
    if recipe is not None and recipe.weights:
        text += f" The weights that it started from: {base}"
    return (
        f"{text} {_text(contradicts)}; the model was pushed all the same." if contradicts else text
    )


def _files(files: Mapping[str, bytes]) -> Iterator[tuple[str, int, str]]:
    for name, content in files.items():
        yield _code(name), len(content), _sha256(content)


def _section(
    title: str,
    headers: tuple[str, ...],
    rows: Iterable[tuple[Any, ...]],
    without: str = "",
    *,
    note: str = "",
) -> str:
    """Return a section with a table; without rows, what is said in its place, or nothing."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    if not lines:
        return f"## {title}\n\n{without}" if without else ""
    head = [f"| {' | '.join(headers)} |", f"|{'|'.join(' --- ' for _ in headers)}|"]
    return "\n".join([f"## {title}", "", *([note, ""] if note else []), *head, *lines])


def _text(value: object) -> str:
    """Return text as Markdown that shows just that: no link, no tag, no end of a table's cell."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", text)


def _code(value: object) -> str:
    """Return a name as code; one that could end it is shown as text."""
    text = " ".join(str(value).split())
    return _text(text) if re.search(r"[`|\\<]", text) else f"`{text}`"


def _count(number: int, noun: str) -> str:
    end = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{end}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
