"""What the tests of `cases/` and `interop/` share: patched models whose patches matter, and ways to
compare what two models compute.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel

__all__ = [
    "EVERY_POSITION",
    "Tiny",
    "calibrate",
    "difference",
    "gates",
    "new_tensors",
    "open_gates",
    "quiet_and_repeatable",
    "ready",
    "steps",
    "switching_often",
    "trial",
]


@pytest.fixture(autouse=True)
def quiet_and_repeatable() -> Iterator[None]:
    """One thread, the same random numbers, and nothing left behind."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    # what a test that failed may have left
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.backends.mha.set_fastpath_enabled(True)


class Tiny(nn.Module):
    """A network that builds in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


BESIDE = {"type": "conv_bn_act", "position": "parallel", "params": {"channels": 256, "stride": 2}}
"""A block beside resnet18's layer3."""

EVERY_POSITION: dict[str, Any] = {
    "layer1": {"inject": {"type": "spatial_attention", "position": "before"}},
    "layer1.*": {"wrap": {"type": "se", "position": "branch"}},
    "layer2.0.bn1": {"wrap": "eca"},
    "layer2.1.conv1": [
        {"inject": {"type": "se", "position": "before"}},
        {"wrap": {"type": "cbam_block", "position": "after"}},
    ],
    "layer3": {"inject": BESIDE},
    "layer4.*": {"wrap": {"type": "channel_attention", "position": "branch"}},
    "layer4.1.conv2": {"inject": {"type": "squeeze_excitation", "position": "parallel"}},
}
"""Patches of resnet18 in every position, on blocks, convolutions and normalizations."""


def ready(name: str = "resnet18", patches: Any = None, **arguments: Any) -> HybridModel:
    """Return a model whose patches matter: gates open, statistics calibrated, in eval mode."""
    arguments.setdefault("num_classes", 10)
    # a copy takes a tenth of the time, and most tests ask for one of a few models
    model, state = _made(json.dumps([name, patches, arguments]))
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@functools.lru_cache(maxsize=4)
def _made(asked: str) -> tuple[HybridModel, Tensor]:
    """Return a model, and the random state that it leaves."""
    name, patches, arguments = json.loads(asked)
    torch.manual_seed(0)
    model = HybridBuilder().from_backbone(name, None, patches=patches, **arguments)
    model = calibrate(model, arguments.get("image_size", 40))
    return open_gates(model), torch.get_rng_state()


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the gates of a model's patches."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "alpha"
    }


def open_gates(model: HybridModel, value: float = 0.7) -> HybridModel:
    """Open the gates of all patches."""
    with torch.no_grad():
        for gate in gates(model).values():
            gate.fill_(value)
    return model


def calibrate(model: Any, size: int = 40) -> Any:
    """Give normalizations statistics of data and unlike scales, as after training, and leave the
    model in eval mode.
    """
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            with torch.no_grad():
                module.weight.copy_(
                    0.8 + 0.4 * torch.rand(module.weight.shape, generator=generator)
                )
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, size, size, generator=generator))
    return model.eval()


def difference(a: Any, b: Any) -> float:
    """Return the largest difference of two results, relative to the largest value of the second."""
    if isinstance(a, Tensor):
        assert a.shape == b.shape, (a.shape, b.shape)
        return float(
            (a.detach() - b.detach()).abs().max() / b.detach().abs().max().clamp_min(1e-12)
        )
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    assert len(a) == len(b)
    return max(difference(one, other) for one, other in zip(a, b, strict=True))


def new_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that patches brought."""
    return {n: p for n, p in model.named_parameters() if n.partition("patches.")[1]}


def steps(
    model: nn.Module,
    number: int = 3,
    size: int = 40,
    classes: int = 10,
    rate: float = 0.05,
    batch: int = 4,
    clip: float = math.inf,
) -> list[float]:
    """Do steps of SGD in training mode, gradients clipped to a norm, and return the losses."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 3, size, size, generator=generator)
    y = torch.arange(batch) % classes
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(number):
        output = model(x)  # in training some networks have auxiliary outputs beside it
        logits = output if isinstance(output, Tensor) else output[0]
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns after each few bytecodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def trial(
    functions: Sequence[Callable[[Tensor], Any]],
    images: Sequence[Tensor],
    threads: int = 4,
    calls: int = 60,
) -> tuple[int, list[str]]:
    """Call functions in threads, mixed; return how many results are not those of the same calls one
    after another, and the errors.
    """
    with torch.no_grad():
        right = [[function(image) for image in images] for function in functions]
    wrong: list[int] = []
    errors: list[str] = []
    start = threading.Barrier(threads)

    def serve(number: int) -> None:
        start.wait()
        for call in range(calls):
            i = (3 * number + call) % len(images)
            which = (number + call // 2) % len(functions)
            try:
                with torch.no_grad():
                    found = functions[which](images[i])
                if difference(found, right[which][i]) > 1e-4:
                    wrong.append(i)
            except AssertionError:
                wrong.append(i)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    with switching_often():
        workers = [threading.Thread(target=serve, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return len(wrong), errors
