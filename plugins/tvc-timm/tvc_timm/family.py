"""Describe a model of timm as a backbone, when its name is used: this imports torch and timm."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from tvc_core import BackboneError, BackboneSpec, UnknownNameError, WeightsSpec

from .branches import BRANCHES
from .names import names
from .parts import Refused, find_parts, runs

__all__ = ["CROP_MODES", "classifiers_of", "describe", "preparation"]

SIDES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides of images that are tried for the smallest one that a model accepts [pixels]."""

OPTIONS = (
    "num_classes",
    "in_chans",
    "global_pool",
    "img_size",
    "patch_size",
    "window_size",
    "output_stride",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "head_drop_rate",
    "act_layer",
    "norm_layer",
    "init_values",
    "class_token",
    "reg_tokens",
    "no_embed_class",
    "fc_norm",
    "pre_norm",
    "qk_norm",
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
    "always_partition",
    "head_init_scale",
    "stem_type",
    "aa_layer",
    "zero_init_last",
    "conv_mlp",
    "pad_type",
    "round_chs_fn",
    "fused_attn",
)
"""Keyword arguments of timm's models that leave them what they are; others (`depth`, `layers`) make
another architecture.
"""

CROP_MODES = ("center", "squash")
"""How timm brings images to their size, as far as a `WeightsSpec` can say it."""

LOADING = ("pretrained_cfg_overlay", "cache_dir")
"""Keyword arguments of `timm.create_model` that say where weights are: they open addresses and
paths.
"""


@lru_cache(maxsize=256)
def describe(member: str) -> BackboneSpec:
    """Return the description of a model, named with or without the tag of its weights, such as
    "resnet50.a1_in1k".

    The model is built without memory for its weights and runs once, which takes some tenths of a
    second.

    Raises:
        UnknownNameError: timm has no model or weights of this name.
        BackboneError: the model has no stem, stages and head; the message says why.
    """
    arch, _, tag = member.partition(".")
    if not arch:
        raise UnknownNameError("the name of a model follows 'timm/'. Which one?")
    if not timm.is_model(arch) and arch not in names():
        raise UnknownNameError(f"timm {timm.__version__} has no model {arch!r}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    default = get_pretrained_cfg(arch)
    if tag and tag not in tags:
        near = [each for each in tags if each.startswith(tag)] or difflib.get_close_matches(
            tag, tags, n=1, cutoff=0.3
        )
        hint = f" Did you mean 'timm/{arch}.{near[0]}'?" if near else ""
        raise UnknownNameError(
            f"timm {timm.__version__} has no weights {tag!r} of {arch!r}.{hint} It has "
            f"{', '.join(tags) or 'none'}"
        )
    chosen = (
        tag
        or (default.tag if default is not None and default.tag in tags else "")
        or (tags[0] if tags else "")
    )
    config = _config(arch, chosen)
    try:
        return _describe(f"timm/{member}", arch, chosen, tags, config)
    except Refused as refused:
        raise BackboneError(
            f"timm/{member} cannot be a backbone of tvc: {refused}. timm itself builds it."
        ) from refused


def _describe(
    name: str, arch: str, chosen: str, tags: list[str], config: Mapping[str, Any]
) -> BackboneSpec:
    channels, height, width = config["input_size"]
    if height != width:
        raise Refused(f"its images have {height} x {width} pixels, and tvc knows square ones only")
    if not config.get("classifier"):
        raise Refused("it is no classifier: timm's configuration names no layer that gives logits")
    if (mode := config.get("crop_mode")) not in CROP_MODES:
        raise Refused(f"its images get a border (crop_mode {mode!r}), and tvc crops or squashes")
    network = _on_meta(arch, chosen)
    num_params = sum(parameter.numel() for parameter in network.parameters())
    features = _features(network)
    image = torch.empty(1, channels, height, width, device="meta")
    if not runs(network, image):
        raise Refused("its forward pass cannot be watched without computing it")
    paths, strides = [info["module"] for info in features], [info["reduction"] for info in features]
    parts = find_parts(network, classifiers_of(config, network), paths, strides, image)
    min_size = _min_size(network, channels, height)
    # a block sees tokens as a map of the size that it was made for, also where timm's model would
    # take other sizes
    fixed = parts.tokens or not (
        min_size < height
        or any(_accepts(network, channels, (side, side)) for side in (height + 32, 2 * height))
    )
    options = {**_options(network), **dict.fromkeys(LOADING)}
    options |= {
        name: value
        for name, value in _known(network, channels, height, fixed).items()
        if name in options
    }
    return BackboneSpec(
        name=name,
        family=str(network.__class__.__name__).lower(),
        origin="timm",
        summary=f"{network.__class__.__name__} of timm, {num_params:,} parameters.",
        factory="tvc_timm.build:build",
        weights=tuple(_weights(arch, each, config, num_params) for each in tags),
        default_weights=chosen or None,
        stem=parts.stem,
        stages=parts.stages,
        neck=parts.neck,
        head=parts.head,
        branches={block: ends[-1] for block, ends in BRANCHES.items()},
        migrate="tvc_timm.migrate:migrate",
        auxiliary=parts.auxiliary,
        options=options,
        code_only=LOADING,
        num_channels=channels,
        channels_option="in_chans" if "in_chans" in options else "",
        size_option="img_size",
        min_size=height if fixed else min_size,
        fixed_size=fixed,
        source=_source(config),
    )


def classifiers_of(config: Mapping[str, Any], network: Any) -> tuple[str, ...]:
    """Return the paths of the layers that give logits: the main one, then those of
    auxiliary heads.
    """
    named = config["classifier"]
    found = (named,) if isinstance(named, str) else tuple(named)
    heads = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(heads, tuple):
        return found
    # the configurations of some distilled networks name the layer in the first of two heads alone
    paths = {id(module): path for path, module in network.named_modules()}
    first, *others = (paths[id(head)] for head in heads)
    inside = found[0].removeprefix(first)
    more = (f"{other}{inside}" for other in others if found[0].startswith(first))
    return (*found, *(path for path in more if path not in found))


def _config(arch: str, tag: str) -> dict[str, Any]:
    found = get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)
    if found is None:
        raise BackboneError(
            f"timm has no configuration of {arch!r}, so nothing says what images it takes"
        )
    return dict(found.to_dict())


def _on_meta(arch: str, tag: str) -> nn.Module:
    def create() -> nn.Module:
        return timm.create_model(arch, pretrained_cfg=tag or None).eval()

    try:
        with suppress(NotImplementedError), torch.device("meta"):  # draws no random numbers
            return create()
        # in torch 2.10 RegNet computes its widths by a function that has no version for meta
        with torch.random.fork_rng(devices=[]):
            return create().to("meta")
    except Exception as error:  # timm may raise any exception
        raise Refused(
            f"it cannot be built without memory ({type(error).__name__}: {error})"
        ) from error


def _features(network: nn.Module) -> list[dict[str, Any]]:
    found: Any = getattr(network, "feature_info", None)
    found = getattr(found, "info", found)
    if not found or not all(
        isinstance(info, dict) and info.get("module") and "reduction" in info for info in found
    ):
        raise Refused("timm states no modules that compute features for it (feature_info)")
    return list(found)


def _options(network: nn.Module) -> dict[str, Any]:
    """Return what the model's class takes of `OPTIONS`; None stands for what timm gives
    this model.
    """
    taken: set[str] = set()
    for cls in type(network).__mro__:
        parameters = inspect.signature(cls).parameters
        taken.update(parameters)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return dict.fromkeys(name for name in OPTIONS if name in taken)


def _known(network: nn.Module, channels: int, side: int, fixed: bool) -> dict[str, Any]:
    known = {"in_chans": channels, "num_classes": getattr(network, "num_classes", None)}
    return {**known, "img_size": side} if fixed else known


def _accepts(network: nn.Module, channels: int, *sizes: tuple[int, int]) -> bool:
    return all(runs(network, torch.empty(1, channels, *size, device="meta")) for size in sizes)


def _min_size(network: nn.Module, channels: int, side: int) -> int:
    """Return the smallest side that the model accepts, of those that are tried: of any image from
    there on, if it can be.
    """
    squares = side
    for each in (smaller for smaller in SIDES if smaller < side):
        if _accepts(network, channels, (each, each)):
            if _accepts(network, channels, (each + 1, each + 7), (2 * each + 3, each)):
                return each
            squares = min(squares, each)
    return squares


def _weights(arch: str, tag: str, base: Mapping[str, Any], num_params: int) -> WeightsSpec:
    """Return a set of weights; `num_params` are those of the network that `base` configures."""
    config = _config(arch, tag)
    options = {}
    if config.get("num_classes") != base.get("num_classes"):
        options["num_classes"] = config["num_classes"]
    if config["input_size"][0] != base["input_size"][0]:
        options["in_chans"] = config["input_size"][0]
    if config.get("fixed_input_size") and config["input_size"] != base["input_size"]:
        options["img_size"] = int(config["input_size"][-1])
    return WeightsSpec(
        name=tag,
        **preparation(config),
        num_classes=config.get("num_classes") or None,
        options=options,
        recipe=_source(config),
        # a set with options makes another network
        num_params=None if options else num_params,
        license=config.get("license") or "",
    )


def preparation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are prepared, as fields of a `WeightsSpec`, from timm's configuration."""
    crop, share = int(config["input_size"][-1]), config.get("crop_pct") or 0.875
    test_crop, test_resize = None, None
    if config.get("test_input_size"):
        test_crop = int(config["test_input_size"][-1])
        test_resize = math.floor(test_crop / (config.get("test_crop_pct") or share))
    return {
        "crop_size": crop,
        "resize_size": math.floor(crop / share),
        "test_crop_size": test_crop,
        "test_resize_size": test_resize,
        "squash": config.get("crop_mode") == "squash",
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }


def _source(config: Mapping[str, Any]) -> str:
    papers = config.get("paper_ids") or ()
    return ", ".join([papers] if isinstance(papers, str) else papers)
