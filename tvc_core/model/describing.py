"""A model described: every module with what flows there, patches included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import BackboneError, ParameterError, foreign
from ..surgery.marks import check_hybrid
from ..surgery.path_info import PathInfo, path_info
from ..surgery.probing import probing
from ..surgery.sites import Probe, image_of
from ..weights.preprocessing import built_size
from .freezing import part_of_parameter
from .hybrid import HybridModel
from .settling import settle

__all__ = ["describe_model"]

USUAL_SIZE = 224
"""Side of the image for a backbone without pretrained weights, which would say theirs, if it takes
that [pixels].
"""


def describe_model(
    model: HybridModel, *, size: int | Sequence[int] | None = None
) -> tuple[PathInfo, ...]:
    """Return every module of a model with what was measured there, in the order of
    `named_modules`: what `describe_backbone` returns of a backbone, with the patches in it.

    The model runs in eval mode, and is as before afterwards. A block that multiplies by its `gate`
    is not called itself by its patch, so its `calls` are 0.

    Args:
        model: the hybrid.
        size: side of the image, or [height, width]; by default those of the preprocessing that was
            set for the model, else those that it was built for, else the crop of its weights or of
            the backbone's default ones; of a backbone without any 224, or, where it does not accept
            that, those that it was measured with [pixels].

    Raises:
        ParameterError: `model` is not a hybrid, or `size` is no size.
        BackboneError: the model does not accept the image.
        PatchError: a patch has lost its place.
    """
    check_hybrid(model, "describe_model")
    state = model._hybrid
    settle(model, state)
    spec, plan = state.plan.backbone.spec, state.plan
    weights = plan.weights or spec.find_weights(spec.default_weights)
    own_size = state.preprocessing.size if state.preprocessing else built_size(plan)
    given = own_size or (weights.crop_size if weights else USUAL_SIZE) if size is None else size
    sides = tuple(given) if isinstance(given, (list, tuple)) else (given, given)
    if len(sides) != 2 or any(
        isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides
    ):
        raise ParameterError(
            f"size is a whole number of pixels, or height and width, each at least 1, not {size!r}"
        )
    own = replace(spec, num_channels=model.num_channels)
    image = image_of(model, own, (sides[0], sides[1]))
    what = f"{spec.name} does not accept images of {sides[0]}x{sides[1]} pixels"
    try:
        with foreign(BackboneError, what), probing(model):
            model(image)
    except BackboneError:
        if size is not None or own_size or weights:
            raise
        image = image_of(model, own, (state.probe_shape[2], state.probe_shape[3]))
    paths = [path for path, _ in model.named_modules() if path]
    sites, _ = Probe(image).sites(model, paths)
    anatomy = state.anatomy
    return tuple(
        path_info(site, part_of_parameter(path, anatomy)[0]) for path, site in sites.items()
    )
