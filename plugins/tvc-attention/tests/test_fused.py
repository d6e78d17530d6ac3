"""Blocks whose map and gate are one computation: against plain code, and where plain code has to
run.
"""

from __future__ import annotations

import copy
import gc
import importlib
import os
import random
import re
import signal
import sys
import time
import types
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm.layers
import torch
from timm.layers.cbam import CbamModule, ChannelAttn
from timm.layers.gather_excite import GatherExcite
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tvc_attention.fused import (
    both,
    channel,
    compiled,
    context,
    layers,
    passes,
    product,
    spatial,
    strips,
)

from tvc_core import HybridBuilder

NAMES = (
    "se", "ese", "eca", "channel_attention", "spatial_attention", "cbam_block", "coord_attention",
    "gather_excite", "global_context",
)  # fmt: skip
COMPILED = ("cbam_block", "coord_attention")
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(name: str, channels: int, **params: Any) -> Any:
    return HybridBuilder().create_block(name, channels, **params)


def plain(block: Any, x: Tensor, alpha: Tensor | None) -> Tensor:
    """The two formulas of the architecture's page, on the block's own gate."""
    gate = block.gate(x).to(x.dtype)
    return x * gate if alpha is None else x * (1 + alpha * (gate - 1))


def gradients(y: Tensor, of: list[Tensor], grad: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, of, grad)]


def is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ in ("ScalingBackward", "ProductBackward") or is_compiled(y)


def is_compiled(y: Tensor) -> bool:
    made_by: Any = y.grad_fn
    if type(made_by).__name__ == "ProductBackward":
        return bool(made_by.shared.compiled)
    return type(made_by).__name__ == "BothBackward"


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have compiled loops take small maps as well."""
    pytest.importorskip("numba", reason="the loops need numba")
    monkeypatch.setattr(compiled, "LEAST", 1)


# -- fused and plain agree -------------------------------------------------------------------------


def a_map(draw: random.Random, dtype: torch.dtype) -> Tensor:
    """A map of a random shape, in a random order in memory, some of them with equal maxima."""
    shape = [draw.randint(1, 5), draw.randint(1, 40), draw.randint(1, 12), draw.randint(1, 12)]
    x = torch.randn(shape, dtype=dtype)
    if draw.random() < 0.2:
        x = x.relu()
    kind = draw.randrange(5)
    if kind == 1:
        return x.contiguous(memory_format=LAST)
    if kind == 2:
        return torch.cat([x, x], 3)[..., ::2][..., : shape[3]]
    if kind == 3:
        return x.transpose(2, 3)
    if kind == 4:
        return x[:1].expand(*shape)
    return x


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.sweep)])
def test_fused_and_plain_agree_on_random_maps(count: int) -> None:
    dtypes = [torch.float64, torch.float64, torch.float32, torch.bfloat16]
    assert count / 3 < num_fused(count, NAMES, dtypes) < count


@pytest.mark.parametrize(
    ("count", "dtype"),
    [
        (150, torch.float32),
        pytest.param(600, torch.float32, marks=pytest.mark.sweep),
        pytest.param(600, torch.float64, marks=pytest.mark.sweep),  # for it, they compile once more
    ],
)
def test_compiled_loops_and_plain_agree_on_random_maps(
    count: int, dtype: torch.dtype, loops: None
) -> None:
    assert count / 3 < num_fused(count, COMPILED, [dtype], is_compiled) < count


def num_fused(
    count: int, names: Sequence[str], dtypes: list[torch.dtype], is_fused: Any = is_fused
) -> int:
    """Compare blocks with plain code on random maps; return how many were fused."""
    draw, num_fused = random.Random(0), 0
    for number in range(count):
        name = names[number % len(names)]
        dtype = draw.choice(dtypes)
        x = a_map(draw, dtype)
        block = make(name, x.shape[1]).to(dtype).eval()
        alpha = torch.tensor([draw.uniform(-1, 2)], dtype=dtype).requires_grad_()
        x = x.detach().requires_grad_()
        grad = torch.randn(x.shape, dtype=dtype)
        if draw.random() < 0.3:
            grad = grad[..., :1].expand(x.shape)
        closed = draw.random() < 0.2
        wanted = [x, *block.parameters(), *([] if closed else [alpha])]
        found = gradients(block.mix(x, None if closed else alpha), wanted, grad)
        expected = gradients(plain(block, x, None if closed else alpha), wanted, grad)
        num_fused += is_fused(found[0])
        # a gradient of a parameter is a sum over the map, so its rounding is that of the terms
        terms = float((grad * x).detach().abs().sum()) + 1
        scales = [float(x.detach().abs().max()) + 1, float(grad.abs().max()) + 1]
        scales += [terms] * (len(wanted) - 1)
        if name in ("cbam_block", "channel_attention", "spatial_attention"):
            scales[1] = terms  # what goes to a maximum is such a sum
        for one, other, scale in zip(found, expected, scales, strict=True):
            tolerance = 8 * torch.finfo(dtype).eps * scale
            assert float((one - other).detach().abs().max()) <= tolerance, (
                number,
                name,
                dtype,
                x.shape,
            )
            assert one.dtype == dtype
    return num_fused


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_maps_of_several_pieces(
    name: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "PIECE", 2 * 6 * 5 * 4)  # two images of five at a time
    block, alpha = make(name, 6).double().eval(), torch.tensor([0.7]).double().requires_grad_()
    x = torch.randn(5, 6, 5, 4).double().contiguous(memory_format=memory_format).requires_grad_()
    wanted, grad = [x, *block.parameters(), alpha], torch.randn_like(x)
    found = gradients(block.mix(x, alpha), wanted, grad)
    assert is_fused(found[0])
    for one, other in zip(found, gradients(plain(block, x, alpha), wanted, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_gradients_are_those_of_finite_differences_twice(
    name: str, memory_format: torch.memory_format
) -> None:
    block = make(name, 4).double().eval()
    x = torch.randn(2, 4, 3, 2).double().contiguous(memory_format=memory_format).requires_grad_()
    alpha = torch.tensor([0.3]).double().requires_grad_()
    names = [each for each, _ in block.named_parameters()]

    def run(x: Tensor, alpha: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(
            _Mixing(block),
            {f"block.{n}": v for n, v in zip(names, values, strict=True)},
            (x, alpha),
        )

    inputs = (x, alpha, *(p.detach().clone().requires_grad_() for p in block.parameters()))
    assert is_fused(run(*inputs))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


class _Mixing(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        return self.block.mix(x, alpha)


@pytest.mark.sweep
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_compiled_gradients_are_those_of_finite_differences_twice(
    name: str, memory_format: torch.memory_format, loops: None
) -> None:
    test_gradients_are_those_of_finite_differences_twice(name, memory_format)


@pytest.mark.parametrize("broken", ["shift", "dots", "marks"])
def test_a_broken_equation_is_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "shift":
        monkeypatch.setattr(channel, "affine", lambda x, scale, shift: x * scale)
    elif broken == "dots":
        monkeypatch.setattr(channel, "channel_dots", lambda a, b: a.sum((2, 3), keepdim=True))
    else:
        monkeypatch.setattr(channel, "marks_of_maxima", lambda x, maxima, out: out.fill_(1))
    block = make("channel_attention", 4, hidden_channels=16).double()
    x = torch.randn(2, 4, 3, 2).double().requires_grad_()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(block, (x,))


# -- where plain code runs, or has to --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_functions(name: str) -> None:
    block, x = make(name, 4).double().eval(), torch.randn(3, 4, 5, 3).double()
    alpha = torch.tensor([0.4]).double()

    def total(x: Tensor) -> Tensor:
        return block.mix(x[None], alpha).square().sum()

    expected = torch.autograd.grad(total(each := x[0].clone().requires_grad_()), each)[0]
    torch.testing.assert_close(torch.func.grad(total)(x[0]), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(x)[0], expected)
    tangent = torch.randn_like(x[0])
    _, slope = torch.func.jvp(total, (x[0],), (tangent,))
    torch.testing.assert_close(slope, (expected * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], tangent)
        found = torch.autograd.forward_ad.unpack_dual(total(dual)).tangent
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("name", NAMES)
def test_tracing_fx_and_export_see_ordinary_operations(name: str) -> None:
    block, x = make(name, 4).eval(), torch.randn(2, 4, 6, 5)
    graph = torch.fx.symbolic_trace(block)
    program = torch.export.export(block, (x.requires_grad_(),))
    for other in (graph, program.module()):
        torch.testing.assert_close(other(x), block(x))
    assert not any("Backward" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batches_and_maps_without_gradients(name: str) -> None:
    block = make(name, 4).eval()
    empty = torch.randn(0, 4, 6, 5, requires_grad=True)
    block.mix(empty, torch.tensor([0.5])).sum().backward()
    assert empty.grad is not None and empty.grad.shape == empty.shape
    x = torch.randn(2, 4, 6, 5)  # of a frozen backbone: only the block learns
    y = block.mix(x, torch.tensor([0.5]))
    expected = torch.autograd.grad(plain(block, x, torch.tensor([0.5])).sum(), block.parameters())
    found = torch.autograd.grad(y.sum(), block.parameters())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_autocast_changes_no_pass_over_a_map(memory_format: torch.memory_format) -> None:
    x, other = (torch.randn(2, 8, 6, 5).contiguous(memory_format=memory_format) for _ in range(2))

    def everything() -> list[Tensor]:
        sums = [passes.summed(x, dims) for dims in ((1,), (2,), (3,), (2, 3))]
        small = other[:, :, :1, :1]
        return [
            *sums,
            *product.strip_means(x),
            passes.channel_dots(x, other),
            passes.weighted_sum(x, other, (1,)),
            passes.affine(x, small, small),
        ]

    with torch.no_grad():
        expected = everything()
        with torch.autocast("cpu", torch.bfloat16):
            found = everything()
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_hooks_and_wrappers_of_inner_layers_act() -> None:
    block, x = make("se", 8), torch.randn(2, 8, 4, 4, requires_grad=True)
    seen: list[Any] = []
    handle = block.fc1.register_forward_hook(lambda *args: seen.append(args[-1].shape))
    block.mix(x, torch.tensor([0.5])).sum().backward()
    assert seen == [(2, 1, 1, 1)]
    handle.remove()
    before = block.mix(x, torch.tensor([0.5]))
    block.fc2 = nn.Sequential(block.fc2, nn.Threshold(1e9, 0))  # a wrapper that puts out 0
    after = block.mix(x, torch.tensor([1.0]))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, x * 0.5)


@pytest.mark.parametrize(("shape", "size"), [((3, 1, 40), 5), ((1, 1, 4), 9), ((2, 1, 30), 1)])
def test_shifted_copies_are_a_convolution(
    shape: tuple[int, ...], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LEAST", 1)
    layer = nn.Conv1d(1, 1, size, padding=size // 2, bias=False).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = layers.neighbor_scores(layer, x)
    assert "Conv" not in type(y.grad_fn).__name__
    grad, of = torch.randn_like(y), [x, layer.weight]
    for one, two in zip(gradients(y, of, grad), gradients(layer(x), of, grad), strict=True):
        torch.testing.assert_close(one, two)


def test_a_convolution_is_called_where_it_is_more_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "LEAST", 1)
    x, seen = torch.randn(2, 1, 8), []
    watched = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    watched.register_forward_hook(lambda *args: seen.append(args))
    changed = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    changed.weight = nn.Parameter(torch.randn(2, 1, 3))
    for layer in (
        watched,
        changed,
        nn.Conv1d(1, 1, 3, padding=1),  # with a bias
        nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode="circular"),
        nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False),
        nn.Conv1d(1, 1, 3, padding=1, stride=2, bias=False),
    ):
        assert torch.equal(layers.neighbor_scores(layer, x), layer(x))
    assert len(seen) == 2
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers.neighbor_scores(layer, x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_copies_and_repeated_backward(name: str) -> None:
    block = copy.deepcopy(make(name, 6)).double().eval()
    x = torch.randn(2, 6, 5, 4).double().requires_grad_()
    y = block.mix(x, None)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], first)
    again = checkpoint(lambda x: block.mix(x, None), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], first)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_keeps_the_map_alive(name: str) -> None:
    block = make(name, 6)
    gc.disable()
    try:
        x = torch.randn(2, 6, 5, 4)
        gone = weakref.ref(x.untyped_storage())
        y = block.mix(x.requires_grad_(), torch.tensor([0.5]))
        del x, y
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("module", [channel, context, product, spatial])
def test_without_fused_functions_the_same_comes_out(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fuses", lambda x: False)
    for name in NAMES:
        block, x = make(name, 6).double().eval(), torch.randn(2, 6, 5, 4).double()
        alpha = torch.tensor([0.3]).double()
        torch.testing.assert_close(
            block.mix(x.requires_grad_(), alpha), plain(block, x, alpha), rtol=1e-12, atol=1e-12
        )


def coordinate_attention(channels: int) -> nn.Module:
    timms = pytest.importorskip("timm.layers.coord_attn", reason="this timm has no such block")
    made: nn.Module = timms.CoordAttn(channels)
    return made


# -- compiled loops --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPILED)
def test_a_broken_loop_is_seen(name: str, loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(loop: Any, count: int, *arguments: Any) -> None:
        compiled.run(loop, count, *arguments)
        if loop.__name__ in ("backward", "dots", "dots_last"):
            arguments[-1][:] *= 1.01  # the gradient of alpha

    for module in (both, strips):
        monkeypatch.setattr(module, "run", run)
    with pytest.raises(AssertionError):
        num_fused(40, (name,), [torch.float32])


@pytest.mark.parametrize("name", ["row_statistics", "column_statistics"])
def test_sums_over_a_large_map_keep_their_digits(name: str, loops: None) -> None:
    from tvc_attention.fused.loops import cbam

    shape = (2, 1 << 18) if name == "row_statistics" else (1 << 18, 2)
    x, ones = torch.full(shape, 0.1), torch.ones(shape[1 if name == "row_statistics" else 0])
    mean, largest = torch.empty(2), torch.empty(2)
    getattr(cbam, name)(*(each.numpy() for each in (x, ones, mean, largest)))
    torch.testing.assert_close(mean, x.mean().expand(2), rtol=1e-5, atol=0)
    assert largest.tolist() == x[:2, :2].amax(0).tolist()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_threads_change_no_bit(memory_format: torch.memory_format, loops: None) -> None:
    block = make("cbam_block", 20)  # all of which the loops compute
    x = torch.randn(8, 20, 6, 5).contiguous(memory_format=memory_format).requires_grad_()
    wanted, grad = [x, *block.parameters()], torch.randn_like(x)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 16):
            torch.set_num_threads(threads)
            y = block.mix(x, None)
            assert is_compiled(y)
            results.append(gradients(y, wanted, grad))
        torch.set_num_threads(17)  # two for an image, of which one would have nothing to do
        assert not is_compiled(block.mix(x, None))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", COMPILED)
def test_frozen_maps_checkpoints_and_second_derivatives_of_loops(name: str, loops: None) -> None:
    block, alpha = make(name, 9).eval(), torch.tensor([0.7], requires_grad=True)
    x = torch.randn(3, 9, 6, 5).requires_grad_()
    learned = [*block.parameters(), alpha]

    def everything(mix: Any) -> list[Tensor]:
        frozen = torch.autograd.grad(mix(x.detach(), alpha).sum(), learned)
        again = checkpoint(lambda x: mix(x, alpha), x, use_reentrant=False)
        first = torch.autograd.grad(mix(x, alpha).square().sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), [x, *learned])
        return [*frozen, *torch.autograd.grad(again.sum(), x), first, *second]

    assert is_compiled(block.mix(x, alpha)) and is_compiled(block.mix(x.detach(), alpha))
    expected = everything(lambda x, alpha: plain(block, x, alpha))
    torch.testing.assert_close(everything(block.mix), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_loops_take_saved_maps_in_any_order(
    name: str, memory_format: torch.memory_format, loops: None
) -> None:
    block = make(name, 8).eval()
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=memory_format).requires_grad_()
    wanted, grad = [x, *block.parameters()], torch.randn_like(x)
    expected = torch.autograd.grad(block.mix(x, None), wanted, grad)

    def transposed(saved: Tensor) -> Tensor:
        return saved.transpose(2, 3) if saved.dim() == 4 else saved

    hooks = lambda saved: transposed(saved).contiguous(), transposed
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        y = block.mix(x, None)
    assert is_compiled(y)
    torch.testing.assert_close(torch.autograd.grad(y, wanted, grad), expected)


@pytest.mark.parametrize("name", COMPILED)
def test_loops_are_tried_outside_of_what_surrounds_their_first_call(name: str, loops: None) -> None:
    block, x = make(name, 8).eval(), torch.randn(2, 8, 4, 4, requires_grad=True)
    compiled._works.cache_clear()
    with torch.device("meta"):
        assert is_compiled(block.mix(x, None))
    compiled._works.cache_clear()
    y = checkpoint(lambda x: block.mix(x, None), x, use_reentrant=False)
    y.sum().backward()
    assert is_compiled(block.mix(x, None))


def test_loops_leave_changed_layers_and_other_numbers_alone(loops: None) -> None:
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    assert is_compiled(make("cbam_block", 8).mix(x, None))
    for path, layer in (
        ("channel.relu", nn.SiLU()),
        ("spatial.sigmoid", nn.Hardsigmoid()),
        ("channel.fc1", nn.Conv2d(8, 1, 1)),  # with a bias
        ("spatial.conv", nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.Tanh())),
    ):
        block = make("cbam_block", 8)
        block.set_submodule(path, layer)
        y = block.mix(x, None)
        assert not is_compiled(y)
        torch.testing.assert_close(y, plain(block, x, None))
    block = make("cbam_block", 8)
    block.channel.fc1 = nn.Conv2d(8, 3, 1, bias=False)  # wider than what comes after it
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block.mix(x, None)
    block = make("cbam_block", 8)
    block.channel.fc1.weight = nn.Parameter(torch.randn(3, 8, 1, 1))  # so is its weight alone
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block.mix(x, None)
    block = make("cbam_block", 8)
    block.spatial.conv = nn.Conv2d(3, 1, 7, padding=3, bias=False)
    with pytest.raises(RuntimeError, match="Given groups"):
        block.mix(x, None)
    for part in ("channel", "spatial"):
        block = make("cbam_block", 8)
        block.set_submodule(part, _Halved(block.get_submodule(part)))
        y = block.mix(x, None)
        assert not is_compiled(y)
        torch.testing.assert_close(y, plain(block, x, None))
    for path in ("channel.fc2", "channel.sigmoid", "spatial.conv"):
        block, seen = make("cbam_block", 8), []
        block.get_submodule(path).register_forward_hook(lambda *args, seen=seen: seen.append(args))
        assert not is_compiled(block.mix(x, None)) and seen
    block = make("cbam_block", 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_compiled(block.mix(x, None))
    assert not is_compiled(block.bfloat16().mix(x.bfloat16(), None))


class _Halved(nn.Module):
    """A part of CBAM by another formula."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def gate(self, x: Tensor) -> Tensor:
        return self.part.gate(x) / 2

    def excite(self, *pooled: Tensor) -> Tensor:
        return self.part.excite(*pooled) / 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own(loops: None) -> None:
    block, x = make("cbam_block", 8), torch.randn(4, 8, 4, 4, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = block.mix(x, None)
        child = os.fork()
        if not child:
            os._exit(0 if torch.equal(block.mix(x, None), expected) else 1)
        for _ in range(600):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            time.sleep(0.1)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child waits for a thread that it does not have")
    finally:
        torch.set_num_threads(before)
    assert status == 0


def test_loops_run_while_the_interpreter_ends(loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make("cbam_block", 8), torch.randn(4, 8, 4, 4, requires_grad=True)
    expected = block.mix(x, None)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()  # as every pool is once the main thread is through
    monkeypatch.setattr(compiled, "_pool", lambda threads: pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(block.mix(x, None), expected)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("missing", None),
        ("broken", ".*njit.*"),
        ("incomplete", "import of llvmlite halted.*"),
        ("disabled", "NUMBA_DISABLE_JIT is set"),
    ],
)
def test_without_a_numba_that_works_operators_run(
    name: str, kind: str, error: str | None, loops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("jit", "cbam", "strips"):
        monkeypatch.delitem(sys.modules, f"tvc_attention.fused.loops.{module}", raising=False)
        monkeypatch.delattr(f"tvc_attention.fused.loops.{module}", raising=False)
    numba: Any = types.ModuleType("numba")
    if kind == "incomplete":
        monkeypatch.setitem(sys.modules, "llvmlite", None)
        numba.__getattr__ = lambda name: importlib.import_module("llvmlite")
    else:
        numba.config = types.SimpleNamespace(DISABLE_JIT=kind == "disabled")
    monkeypatch.setitem(sys.modules, "numba", None if kind == "missing" else numba)
    compiled._works.cache_clear()
    block, x = make(name, 8), torch.randn(2, 8, 4, 4, requires_grad=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ys = [block.mix(x, None) for _ in range(2)]
    finally:
        compiled._works.cache_clear()
    assert not any(map(is_compiled, ys))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (error is not None)
    expected = f"numba is installed and cannot be used: {error}. .*; mend that, or uninstall numba"
    assert all(re.match(expected, message) for message in messages)


# -- memory ----------------------------------------------------------------------------------------

THEIRS = {
    "se": timm.layers.SEModule,
    "ese": timm.layers.EffectiveSEModule,
    "eca": timm.layers.EcaModule,
    "channel_attention": ChannelAttn,
    "cbam_block": CbamModule,
    "coord_attention": coordinate_attention,
    "gather_excite": lambda channels: GatherExcite(channels, use_mlp=False),
    "global_context": timm.layers.GlobalContext,
}


def kept(run: Any, x: Tensor) -> int:
    """Return what autograd keeps of a forward pass [bytes]."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # else an output is held by its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x)
    del y
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_loops_keep_no_more_for_backward_than_timm(
    name: str, memory_format: torch.memory_format, loops: None
) -> None:
    test_no_more_is_kept_for_backward_than_by_timm(name, memory_format)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_no_more_is_kept_for_backward_than_by_timm(
    name: str, memory_format: torch.memory_format
) -> None:
    x = torch.randn(4, 64, 28, 28).contiguous(memory_format=memory_format).requires_grad_()
    block = make(name, 64, **({"use_mlp": False} if name == "gather_excite" else {}))
    alpha = torch.tensor([0.5], requires_grad=True)
    assert kept(lambda x: block.mix(x, alpha), x) <= 1.02 * kept(THEIRS[name](64), x)
