"""What checks share: maps to try things on, states to compare, and how to tell a clear refusal from
a crash.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..assemble import assemble
from ..errors import ParameterError, TvcError
from ..model.hybrid import HybridModel
from ..recipe import Recipe, make_plan
from ..registry import Registry
from ..surgery.blocks import create_block
from .seeding import torch_seed
from .subjects import Fault, Subject

__all__ = [
    "SEED",
    "build_patched",
    "changed_names",
    "check_copies",
    "close",
    "image",
    "leaves_seed",
    "map_of",
    "named_tensors",
    "perturb",
    "refuses_clearly",
    "describe_error",
    "seeded_block",
    "snapshot",
]

SEED = 20


def describe_error(error: BaseException) -> str:
    """Return an error's class and the start of its message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def refuses_clearly(error: BaseException) -> bool:
    """Tell whether an error is meant for the user: of tvc's, or a ValueError, and not a crash that
    was wrapped.
    """
    if isinstance(error, ParameterError) and error.__cause__ is not None:
        return isinstance(error.__cause__, (ValueError, TvcError))
    return isinstance(error, (TvcError, ValueError))


def build_patched(registry: Registry, backbone: str, patches: dict[str, Any]) -> HybridModel:
    """Return a hybrid that was built without the proof by a training step: the checks say more of
    what it would refuse.
    """
    given = {"backbone": {"name": backbone, "weights": None, "patches": patches}}
    return assemble(make_plan(Recipe.from_mapping(given), registry), pretrained=False)


def seeded_block(subject: Subject, in_channels: int, seed: int = SEED) -> nn.Module:
    """Return a new block, made under a seed; torch's random state is restored."""
    with torch_seed(seed):
        return create_block(subject.named, in_channels, subject.params)


def leaves_seed(run: Callable[[], Any]) -> bool:
    """Tell whether something leaves torch's random state to whoever has set it; it may draw
    numbers.
    """
    states = []
    for seed in (1, 2):
        with torch_seed(seed):
            run()
            states.append(torch.get_rng_state())
    return not torch.equal(*states)


def map_of(
    layout: str,
    channels: int,
    height: int = 8,
    width: int = 12,
    *,
    num: int = 2,
    seed: int = SEED,
    dtype: Any = torch.float32,
) -> Tensor:
    """Return a random map in a layout: [num, C, H, W], [num, H, W, C], [num, H * W, C] or
    [num, C].
    """
    shapes = {
        "NCHW": (num, channels, height, width),
        "NHWC": (num, height, width, channels),
        "NLC": (num, height * width, channels),
        "NC": (num, channels),
    }
    return torch.randn(
        shapes[layout], generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    ).to(dtype)


def image(num: int, channels: int, height: int, width: int, *, seed: int = SEED) -> Tensor:
    """Return random images [num, channels, height, width]."""
    return map_of("NCHW", channels, height, width, num=num, seed=seed)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Tell whether two results are the same up to the order of sums: relative to the
    largest value.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = max(float(b.detach().abs().max()) if b.numel() else 0.0, 1.0)
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def perturb(tensors: Iterable[Tensor], seed: int = SEED, size: float = 0.2) -> None:
    """Add random numbers to parameters, in place, so that nothing is zero by its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * size)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, including those outside of the state dict."""
    return dict(
        (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        )
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(module).items()}


def changed_names(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    """Return the names whose tensors differ from a snapshot, or are on one side only."""
    after = named_tensors(module)
    different = [name for name in before if name in after and not _equal(before[name], after[name])]
    return sorted({*different, *(before.keys() ^ after.keys())})


def _equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(torch.equal(a.nan_to_num(), b.detach().nan_to_num()))
    )


def check_copies(module: nn.Module, x: Tensor, what: str) -> None:
    """Raise a Fault where a pickle or a deep copy of a module does not do the same, or shares
    tensors with it.
    """
    with torch.no_grad():
        expected = module(x)
    for way in ("pickle", "deepcopy"):
        try:
            twin = pickle.loads(pickle.dumps(module)) if way == "pickle" else copy.deepcopy(module)
        except Exception as error:  # pickling may raise any exception
            raise Fault(
                f"that {way} takes {what}",
                describe_error(error),
                "use classes and functions of a module instead of lambdas and local ones, and keep "
                "generators and files out",
            ) from error
        with torch.no_grad():
            if not torch.equal(twin(x), expected):
                do = "let __getstate__ and __deepcopy__ keep everything"
                raise Fault(f"the same result from {what} after {way}", "another result", do)
        pointers = {
            tensor.data_ptr() for tensor in named_tensors(module).values() if tensor.numel()
        }
        shared = [
            name
            for name, tensor in named_tensors(twin).items()
            if tensor.numel() and tensor.data_ptr() in pointers
        ]
        if shared:
            raise Fault(
                f"a copy of {what} by {way} with tensors of its own",
                f"shared {shared[0]}",
                "also copy tensors",
            )
