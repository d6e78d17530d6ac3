"""Build a model of timm by timm's own `create_model`, with its weights from timm's cache or hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models import get_pretrained_cfg
from torch import nn

from tvc_core import BackboneSpec, NoClassifier, ParameterError, WeightsError, WeightsSpec

from .branches import declare_branches
from .family import CROP_MODES, classifiers_of, preparation

__all__ = ["build"]


def build(spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any) -> nn.Module:
    """Build a model of timm; the factory of every member of the family.

    Args:
        spec: its `name` is timm's, after "timm/".
        weights: one of the spec's pretrained sets, or None for random weights.
        **options: what timm's model takes. `num_classes` of a pretrained model gives it a new
            classifier; every other weight is the file's, or it is an error.

    Raises:
        WeightsError: the file is not available, or does not fit.
        ParameterError: an overlay of the weights' configuration beside random weights, or a size
            that timm would cut off.
    """
    arch = spec.name.partition("/")[2].partition(".")[0]
    tag = weights.name if weights is not None else spec.default_weights
    options = {name: value for name, value in options.items() if value is not None}
    if weights is None:
        _check_overlay(options.get("pretrained_cfg_overlay"))
        network = timm.create_model(arch, pretrained_cfg=tag, **options)
    else:
        network = _pretrained(arch, weights, options)
    _check_size(network, options.get("img_size"))
    config = get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)
    assert config is not None  # it was there when the model was described
    for path in classifiers_of(config.to_dict(), network):
        _mark(network, path)
    declare_branches(network)
    return network


def _check_overlay(overlay: Mapping[str, Any] | None) -> None:
    """Refuse what changes timm's configuration of weights where timm loads none."""
    if overlay:
        raise ParameterError(
            f"pretrained_cfg_overlay ({', '.join(overlay)}) is about weights that timm loads, and "
            "with weights=None, or a file of your own in weights, it loads none. Leave weights out "
            "to load what the overlay says; or leave out the overlay, give num_classes and "
            "image_size themselves, and say by model.preprocessing how images are prepared"
        )


def _check_images(
    weights: WeightsSpec, config: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Refuse images of an overlay that neither a saved model nor its preprocessing would know."""
    size, mode = tuple(config["input_size"][1:]), config.get("crop_mode")
    shape, square = "x".join(map(str, size)), (weights.crop_size, weights.crop_size)
    if config.get("fixed_input_size") and size != square and "img_size" not in options:
        raise ParameterError(
            f"the overlay's input_size would build the network for images of {shape} pixels, and a "
            f"saved model would not know it: give image_size={list(size)} as well"
        )
    if mode in CROP_MODES and (size[0] == size[1] or "img_size" in options):
        return
    raise ParameterError(
        f"an overlay says square images that are cropped or squashed, not {shape} with crop_mode "
        f"{mode!r}: leave that out, and say by model.preprocessing how images are prepared"
    )


def _check_size(network: nn.Module, size: Any) -> None:
    """Refuse images of which timm would cut a border off that makes no whole patch."""
    if size is None:
        return
    sides = (size, size) if isinstance(size, int) else tuple(size)
    for module in network.modules():
        if not isinstance(module, PatchEmbed) or module.dynamic_img_pad:
            continue
        below = [
            side // patch * patch for side, patch in zip(sides, module.patch_size, strict=True)
        ]
        if below != list(sides) or not all(below):
            above = [
                -(-side // patch) * patch
                for side, patch in zip(sides, module.patch_size, strict=True)
            ]
            near = " and ".join(f"{h}x{w}" for h, w in (below, above) if h and w)
            raise ParameterError(
                f"image_size={size if isinstance(size, int) else list(size)} does not divide into "
                f"patches of {'x'.join(map(str, module.patch_size))} pixels, and timm would cut "
                f"off what is left over; {near} {'do' if ' and ' in near else 'does'}"
            )


def _pretrained(arch: str, weights: WeightsSpec, options: dict[str, Any]) -> Any:
    """Return a model with the tensors of a file: all of them, then a new classifier where one is
    asked for.
    """
    num_classes = options.pop("num_classes", None)
    pool = options.pop("global_pool") if num_classes == 0 and "global_pool" in options else None
    overlay = options.get("pretrained_cfg_overlay") or {}
    place = {name: overlay[name] for name in _PLACES if overlay.get(name)}
    where = f" from {place}" if place else ""
    try:
        network: Any = timm.create_model(
            arch, pretrained=True, pretrained_cfg=weights.name, **options
        )
    except (TypeError, AssertionError):  # an option that is wrong is not the file's fault
        raise
    except OSError as error:
        raise WeightsError(
            f"the weights {weights.name!r} of timm/{arch} cannot be downloaded or read{where}: "
            f"{_short(error)}. timm reads them from its hub or the "
            "cache of it; give another place by options={'pretrained_cfg_overlay': {'file': ...}}, "
            "or pass weights=None to "
            "start from random weights."
        ) from error
    except Exception as error:  # what a hub or a damaged file raises is anything
        head = "num_classes" not in overlay and "size mismatch" in str(error)
        hint = ". If the file has another number of classes, the overlay says so: 'num_classes': 10"
        raise WeightsError(
            f"the weights {weights.name!r} of timm/{arch} cannot be loaded{where}: {_short(error)}"
            f"{hint if head and place else ''}"
        ) from error
    if overlay:
        _check_images(weights, network.pretrained_cfg, options)
        network.tvc_weights = _of_overlay(weights, network.pretrained_cfg, place)
    if num_classes is not None and num_classes != network.num_classes:
        network.reset_classifier(num_classes, **({} if pool is None else {"global_pool": pool}))
    return network


_PLACES = ("file", "url", "hf_hub_id", "state_dict")
"""Keys of timm's configuration that say where weights are."""


def _of_overlay(
    weights: WeightsSpec, config: Mapping[str, Any], place: Mapping[str, Any]
) -> WeightsSpec:
    """Return what weights are by the configuration that the network itself has in the end."""
    found = replace(weights, **preparation(config))
    if not place:
        return found
    kind, where = next(iter(place.items()))
    names = config.get("label_names")
    return replace(
        found,
        name=Path(str(where)).name if kind != "state_dict" else kind,
        num_classes=config.get("num_classes") or None,
        class_names=tuple(map(str, names)) if names else (),
        recipe="",
        num_params=None,
        gflops=None,
        acc1=None,
        license="",
    )


def _mark(network: nn.Module, path: str) -> None:
    """Put a `NoClassifier` where timm has nothing in the place of a classifier, so that the head
    can be given one later.
    """
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        parent, name = network.get_submodule(".".join(parts[: count - 1])), parts[count - 1]
        module = parent._modules.get(name)
        if type(module) is nn.Identity:
            width: Any = getattr(network, "head_hidden_size", None) or network.num_features
            setattr(parent, name, NoClassifier(nn.Linear(width, 1, device="meta")))
            return
        if module is None:
            return


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
