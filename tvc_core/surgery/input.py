"""Make a network take images of another number of channels: the weights of its first layer follow
from the pretrained ones.

New channel j gets sum over c of A[j, c] times the pretrained weights of channel c, where A has the
rules as rows and every column of A is scaled to the sum 1. So an image whose channels are all equal
gives what it gave before, whatever the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import BackboneError, ParameterError, join_names
from .noise import noise
from .probing import probing
from .sites import Probe

__all__ = ["InputRecord", "change_input", "mixing"]

Policy = str | Sequence[str | int]

_NAMES = ("r", "g", "b")


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """What was done at the input.

    Args:
        path: dotted path of the first convolution.
        channels: channels that it takes now [channels].
        before: channels that it took [channels].
        policy: how the new weights follow from the old ones.
    """

    path: str
    channels: int
    before: int
    policy: str | tuple[str | int, ...]


def mixing(policy: Policy, channels: int, before: int) -> Tensor:
    """Return the matrix [channels, before] that makes new channels' weights out of the old
    channels'.

    Args:
        policy: "mean": every new channel gets the mean; "repeat": the old channels in turn, or,
            where there are fewer new ones, each the sum of those that fall to it; "zero": the old
            channels, then zeros; or one rule a channel: "r", "g", "b" or a number for an old
            channel, "mean", "zero".
        channels: new channels.
        before: old channels.

    Raises:
        ParameterError: a rule names a channel that is not there, or an old channel is used by no
            rule.
    """
    rows = torch.zeros(channels, before, dtype=torch.float64, device="cpu")
    if policy == "mean":
        rows += 1 / before
    elif policy == "repeat":
        for index in range(max(channels, before)):
            rows[index % channels, index % before] = 1
    else:
        rules = (
            list(policy)
            if not isinstance(policy, str)
            else [*range(before)][:channels] + ["zero"] * (channels - before)
        )
        for row, rule in zip(rows, rules, strict=True):
            _fill(row, rule, before)
    sums = rows.sum(0)
    unused = [
        _NAMES[index] if before == 3 else str(index) for index in range(before) if not sums[index]
    ]
    if unused:
        raise ParameterError(
            f"in_channels_policy {_shown(policy)} for {channels} channels uses the pretrained "
            f"channel {join_names(unused)} "
            "nowhere, so the network would no longer compute what it learned; 'mean' and "
            "'repeat' use all"
        )
    return rows / sums


def change_input(
    network: nn.Module, probe: Probe, channels: int, policy: Policy
) -> tuple[InputRecord, Probe]:
    """Give the first layer weights for another number of channels, in place, and return what was
    done and a new probe.

    The layer is found by running the network: it is the only one with weights that gets the image
    itself. Its name, class, hooks and bias stay.

    Args:
        network: the network; the caller undoes the change where this raises.
        probe: an image that the network accepts now.
        channels: channels of the images that it is to accept.
        policy: as for `mixing`.

    Raises:
        BackboneError: the first layer is no plain convolution, does not get the image itself, or
            the network does not give for equal channels what it gave before.
        ParameterError: the policy does not fit.
    """
    path = _first_layer(network, probe)
    layer = network.get_submodule(path)
    before = probe.image.shape[1]
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.in_channels != before:
        raise BackboneError(
            f"in_channels cannot change: the layer that takes the image, {path!r}, is {layer}, not "
            "a convolution over all "
            f"of its {before} channels"
        )
    # The proof of what the module promises: an image with equal channels, once as the pretrained
    # network takes it and once with the new number of channels, has to give the same logits up to
    # rounding. A network that does more with the channels than this one convolution (a difference
    # of channels as an input of its own, say) fails it, and the caller rolls the change back.
    gray = probe.image.mean(1, keepdim=True)
    wanted = Probe(gray.expand(-1, before, -1, -1)).run(network)
    mix = mixing(policy, channels, before)
    with torch.no_grad():
        weight = torch.einsum(
            "nc,ochw->onhw", mix.to(layer.weight.device), layer.weight.double()
        ).to(layer.weight.dtype)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    layer.in_channels = channels
    try:
        found = Probe(gray.expand(-1, channels, -1, -1)).run(network)
    except Exception as error:  # a network may raise any exception
        raise BackboneError(
            f"in_channels cannot change: with {channels} channels at {path!r} the network fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not found.is_meta and not _are_near(found, wanted):
        difference = float((found - wanted).abs().max())
        raise BackboneError(
            f"in_channels cannot change: for an image of {channels} equal channels the network "
            f"differs by {difference:.3g} "
            f"from what it gave for {before}, so it does more with the channels than the "
            f"convolution {path!r}"
        )
    image = noise((1, channels, *probe.size)).to(probe.image)
    record = InputRecord(
        path=path,
        channels=channels,
        before=before,
        policy=policy if isinstance(policy, str) else tuple(policy),
    )
    return record, Probe(image, probe.tries)


def _are_near(found: Tensor, wanted: Tensor) -> bool:
    near = torch.finfo(found.dtype).eps ** 0.5
    size = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    return torch.allclose(found, wanted, rtol=0, atol=near * size, equal_nan=True)


def _first_layer(network: nn.Module, probe: Probe) -> str:
    """Return the path of the layer with weights that gets the image."""
    order: list[str] = []
    takers: list[str] = []

    def watch(path: str, module: nn.Module) -> RemovableHandle:
        def before(_: nn.Module, args: tuple[object, ...]) -> None:
            x = args[0] if args else None
            order.append(path)
            if (
                isinstance(x, Tensor)
                and x.shape == probe.image.shape
                and (x is probe.image if x.is_meta else torch.equal(x, probe.image))
            ):
                takers.append(path)

        return module.register_forward_pre_hook(before)

    # By value, not by name or order: the layer is the one with weights of its own that gets the
    # very image (on meta, where there are no values, that object). So a normalization inside of the
    # network, which would need its own answer for new channels, is noticed, since then no layer
    # gets the image as it came in.
    layers = [
        (path, module)
        for path, module in network.named_modules()
        if path and next(module.parameters(recurse=False), None) is not None
    ]
    with probing(network):
        handles = [watch(path, module) for path, module in layers]
        try:
            network(probe.image)
        finally:
            for handle in handles:
                handle.remove()
    if len(dict.fromkeys(takers)) == 1:
        return takers[0]
    if takers:
        raise BackboneError(
            "in_channels cannot change: the image goes into several layers: "
            f"{join_names(dict.fromkeys(takers))}"
        )
    first = f"its first layer with weights, {order[0]!r}," if order else "a layer with weights"
    hint = (
        " channel by channel (transform_input). Build it with options={'transform_input': False}, "
        "and scale images to mean 0.5 "
        "and standard deviation 0.5 yourself."
        if getattr(network, "transform_input", False)
        else ". Do that outside, where it can know all channels."
    )
    raise BackboneError(
        f"in_channels cannot change: the network changes the image before {first} gets it{hint}"
    )


def _fill(row: Tensor, rule: str | int, before: int) -> None:
    if rule == "mean":
        row += 1 / before
    elif rule != "zero":
        index = _NAMES.index(rule) if isinstance(rule, str) else rule
        if index >= before or (isinstance(rule, str) and before != 3):
            known = "'r', 'g', 'b', " if before == 3 else ""
            raise ParameterError(
                f"in_channels_policy has the rule {rule!r}; the pretrained network takes {before} "
                "channels: the rules are "
                f"{known}0 to {before - 1}, 'mean' and 'zero'"
            )
        row[index] = 1


def _shown(policy: Policy) -> str:
    return repr(policy if isinstance(policy, str) else list(policy))
