"""torchvision's networks through torchvision's own builders, with every weight file opened by us.

The builders do more than load: they rename old keys, set `transform_input`, drop auxiliary heads.
So they are called as they are, with a stand-in for the enum member whose `get_state_dict` checks
the file's hash, also in the cache, where torchvision itself looks at nothing, and opens it without
running code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from ..errors import BackboneError, ParameterError, WeightsError, join_names
from ..specs import BackboneSpec, WeightsSpec
from .cache import cached_file, hash_in_name
from .files import read_state_dict
from .preparing import Preprocessing
from .skeleton import build_again

__all__ = ["build_torchvision", "class_names_of", "training_transforms_of", "transforms_of"]


class _CheckedMember:
    """Looks to a torchvision builder like a member of its weights enum, and reads its file
    safely.
    """

    def __init__(self, member: Any) -> None:
        self._member = member

    @property  # type: ignore[misc]
    # torchvision's builders ask isinstance(weights, ResNet50_Weights)
    def __class__(self) -> type[Any]:
        return type(self._member)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def get_state_dict(self, progress: bool = True, **_: Any) -> dict[str, Tensor]:
        """Return the tensors, downloading the file first where the cache lacks it."""
        path = cached_file(self._member.url, progress=progress)
        return read_state_dict(path, sha256=hash_in_name(path.name))


def build_torchvision(
    spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any
) -> nn.Module:
    """Build a network of torchvision's by its name there; the factory of every torchvision
    backbone.

    Args:
        spec: its `name` is torchvision's.
        weights: one of the spec's pretrained sets, or None for random weights.
        **options: what torchvision's builder takes.

    Raises:
        BackboneError: the installed torchvision does not have the network.
        ParameterError: `image_size` is no number: torchvision's networks take square images.
        WeightsError: the file is not available, has the wrong hash, or does not fit the network.
    """
    if isinstance(size := options.get("image_size"), (tuple, list)):
        raise ParameterError(
            f"{spec.name} takes square images, so image_size is one number, such as "
            f"{max(size)}, not {size!r}; timm's ViTs take a height and a width"
        )
    try:
        build = torchvision.models.get_model_builder(spec.name)
    except ValueError as error:
        raise BackboneError(
            f"torchvision {torchvision.__version__} has no {spec.name!r}: upgrade torchvision"
        ) from error
    if weights is None:
        try:
            return build(weights=None, **options)
        except AssertionError:
            if size is not None:  # which sizes divide into patches, a network of the usual one says
                with torch.device("meta"):
                    set_image_size(build(weights=None), size)
            raise
    # The builder is torchvision's own, since it does more than to load: it renames old keys, sets
    # options that a set of weights needs, drops auxiliary heads. It asks two things of the member
    # that it is given: whether it is of the right enum class, and for its tensors. `_CheckedMember`
    # answers both, the second one from a file whose hash was compared.
    member = find_member(spec, weights)

    def build_from_file() -> nn.Module:
        given = dict(options)
        size = given.pop("image_size", None)
        network: nn.Module = build(weights=_CheckedMember(member), **given)
        if size is not None:
            set_image_size(network, size)
        return network

    what = {"builder": build.__module__, "member": str(member), "options": options}
    path = cached_file(member.url)
    try:
        return build_again(build_from_file, path, hash_in_name(path.name), what)
    except WeightsError:
        raise
    except RuntimeError as error:
        changed = f" with the options {join_names(options)}" if options else ""
        reason = " ".join(str(error).split())[:400]
        raise WeightsError(
            f"the file of {member} does not fit {spec.name}{changed}: {reason}"
        ) from error


def set_image_size(network: nn.Module, size: int | Sequence[int]) -> None:
    """Make a ViT take images of another size, in place: its position embeddings are resampled,
    bicubic, as torchvision does.

    Raises:
        BackboneError: the network is no ViT, or its patches do not divide the size.
    """
    if not isinstance(network, VisionTransformer):
        raise BackboneError(
            f"{type(network).__name__} has no position embeddings that tvc can resample for images "
            f"of {size} pixels"
        )
    if not isinstance(size, int):
        raise BackboneError(
            f"torchvision's {type(network).__name__} takes square images only, so image_size is "
            f"one number, not {list(size)}: resize the images to a square"
        )
    patch = network.patch_size
    if size < patch or size % patch:
        raise BackboneError(
            f"image_size={size} does not divide into patches of {patch} pixels; "
            f"{max(1, size // patch) * patch} and "
            f"{(size // patch + 1) * patch} do"
        )
    if size == network.image_size:
        return
    state = interpolate_embeddings(
        size, patch, OrderedDict({_POSITIONS: network.get_parameter(_POSITIONS).detach()})
    )
    network.encoder.pos_embedding = nn.Parameter(state[_POSITIONS].contiguous())
    network.image_size, network.seq_length = size, state[_POSITIONS].shape[1]


_POSITIONS = "encoder.pos_embedding"


def find_member(spec: BackboneSpec, weights: WeightsSpec) -> Any:
    """Return torchvision's enum member for one of a spec's pretrained sets.

    Raises:
        BackboneError: the installed torchvision does not have it.
    """
    members = torchvision.models.get_model_weights(spec.name)
    try:
        return members[weights.name]
    except KeyError:
        known = [member.name for member in members]
        raise BackboneError(
            f"torchvision {torchvision.__version__} has no weights {weights.name!r} for "
            f"{spec.name!r}; it has {join_names(known)}"
        ) from None


def transforms_of(
    said: WeightsSpec | Preprocessing, sides: tuple[int, int] | None = None
) -> nn.Module:
    """Return the preprocessing that a pretrained set was trained with, or what was set for a model,
    as torchvision's own module.

    Args:
        said: which preprocessing; what a `Preprocessing` fits otherwise than by a crop, it fits
            itself.
        sides: height and width to cut out of an image that covers a square of the longer side, or,
            of a set that squashes images, that is squashed to their shape; by default the set's own
            [pixels].
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    if isinstance(said, Preprocessing):
        crop, resize, squash = max(said.size), said.resize, False
    else:
        crop, resize, squash = said.crop_size, said.resize_size, said.squash
    preset = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        mean=said.mean,
        std=said.std,
        interpolation=InterpolationMode(said.interpolation),
    )
    height, width = sides or (crop, crop)
    if squash:  # a height and a width, not one number for the short side
        preset.resize_size = [round(resize * side / crop) for side in (height, width)]
    if height != width:
        preset.crop_size = [height, width]
    return preset


def training_transforms_of(
    weights: WeightsSpec | Preprocessing, sides: tuple[int, int]
) -> nn.Module:
    """Return the augmentation with which torchvision's reference scripts train, where they are told
    nothing else: a random crop, half of the images mirrored. timm's random crops have the same
    shares and ratios.
    """
    from torchvision.transforms import InterpolationMode, v2

    interpolation = InterpolationMode(weights.interpolation)
    return v2.Compose(
        [
            v2.RandomResizedCrop(sides, interpolation=interpolation, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(weights.mean, weights.std),
        ]
    )


def class_names_of(weights: WeightsSpec) -> tuple[str, ...] | None:
    """Return the names of the pretrained head's outputs: the set's own, else ImageNet's for a head
    of 1000, else None.
    """
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    if weights.class_names is not None:
        return weights.class_names or None
    return tuple(_IMAGENET_CATEGORIES) if weights.num_classes == len(_IMAGENET_CATEGORIES) else None
