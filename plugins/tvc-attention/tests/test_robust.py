"""Every block of the plugin on what real networks, data and tools hand to it. The blocks are taken
from the registry, so a new one is tested from the day that it is listed.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from tvc_attention.gather_excite import GatherExcite

from tvc_core import BlockSpec, HybridBuilder
from tvc_core.testing import toy_plugin

BUILDER = HybridBuilder(plugins=[toy_plugin])
SPECS = {
    named.spec.name: named.spec
    for named in BUILDER.registry.all(BlockSpec)
    if named.owner == "tvc-attention"
}
NAMES = sorted(SPECS)
SIZES = ((1, 1), (1, 9), (6, 5))
MORE_SIZES = ((1, 1), (2, 1), (1, 9), (3, 3), (7, 7), (14, 13), (28, 28), (31, 56), (56, 56))
UNSEEN = ((1, 8, 1, 1), (3, 8, 9, 21), (5, 8, 31, 2))
"""Shapes that no export here has seen: one pixel, and sides that no pooling divides."""
SAMPLE = ("cbam_block", "mlca", "triplet_attention")

every_block = pytest.mark.parametrize("name", NAMES)


def make(name: str, in_channels: int, **params: Any) -> Any:
    """Return a block in eval mode, no parameter of which is at a start such as zero."""
    torch.manual_seed(0)
    block = BUILDER.create_block(name, in_channels, **params)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return block.eval()


def map_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare relative to the largest value: gates without a bound make results of any size."""
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        found.float() / scale, expected.float() / scale, rtol=0, atol=tolerance
    )


def test_there_are_blocks_to_test() -> None:
    assert len(NAMES) >= 16 and set(SAMPLE) < set(NAMES)


# -- shapes and types ------------------------------------------------------------------------------


def check_sizes(name: str, widths: Any, sizes: Any) -> None:
    for channels, size, num, training in product(widths, sizes, (0, 1, 2), (False, True)):
        block = make(name, channels).train(training)
        x = map_of(num, channels, *size).requires_grad_()
        what = f"{list(x.shape)}, training={training}"
        y = block(x)
        assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all(), what
        y.square().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all(), what
        for parameter, value in block.named_parameters():
            assert value.grad is None or value.grad.isfinite().all(), (what, parameter)


@every_block
def test_any_width_size_and_batch_passes_forward_and_backward(name: str) -> None:
    check_sizes(name, (1, 3, 16, 97), SIZES)
    check_sizes(name, (24,), ((56, 56),))


def test_a_map_gathered_to_one_pixel_passes_in_training() -> None:
    """A batch of one image, whose convolutions leave one value of each channel to normalize."""
    block = GatherExcite(8, extent=8, extra_params=True).train()
    x = map_of(1, 8, 7, 7).requires_grad_()
    block(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.sweep
@every_block
def test_the_whole_grid_passes_forward_and_backward(name: str) -> None:
    check_sizes(name, range(1, 98), MORE_SIZES[:4])
    check_sizes(name, (1, 2, 7, 16, 40, 64, 97), MORE_SIZES[4:])


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_stay_near_float32(name: str, dtype: torch.dtype) -> None:
    block, x = make(name, 16), map_of(2, 16, 28, 28)
    expected = block(x)
    found = block.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    close(found, expected, 0.05)


@every_block
def test_float16_does_not_overflow_inside(name: str) -> None:
    """56 x 56 pixels with values of 30: a sum of squares would be 2.8 million, and 65,504 is the
    largest number."""
    block, x = make(name, 4), 30 * map_of(1, 4, 56, 56)
    found = block.half()(x.half())
    assert found.isfinite().all()


@every_block
@pytest.mark.parametrize("training", [False, True])
def test_autocast_keeps_the_type_of_the_map(name: str, training: bool) -> None:
    block = make(name, 16).train(training)
    for dtype in (torch.float32, torch.bfloat16):
        x = map_of(2, 16, 6, 5, dtype=dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()


@every_block
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (14, 14)])
def test_channels_last_goes_in_and_comes_out(name: str, size: tuple[int, int]) -> None:
    x = map_of(2, 16, *size)
    found, expected = [], []
    for memory_format, results in (
        (torch.channels_last, found),
        (torch.contiguous_format, expected),
    ):
        block = make(name, 16).to(memory_format=memory_format)
        given = x.clone(memory_format=memory_format).requires_grad_()
        y = block(given)
        assert y.is_contiguous(memory_format=memory_format)
        y.square().sum().backward()
        results += [y, given.grad]
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-5)


@every_block
def test_a_map_that_is_a_view_gives_the_same(name: str) -> None:
    block, x = make(name, 8), map_of(2, 16, 12, 10)
    view = x[:, ::2, 1::2].transpose(2, 3)
    close(block(view), block(view.contiguous()), 1e-5)


@every_block
def test_eval_mode_is_deterministic_and_sees_each_image_alone(name: str) -> None:
    block, x = make(name, 16), map_of(3, 16, 6, 5)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    first = block(x)
    torch.manual_seed(123)
    assert torch.equal(block(x), first)
    close(torch.cat([block(image[None]) for image in x]), first, 1e-5)
    assert all(torch.equal(block.state_dict()[key], value) for key, value in before.items())


# -- inside of networks ----------------------------------------------------------------------------


def inserted(name: str, backbone: str, path: str, gate: float = 1) -> Any:
    """Return the patch at a path of a hybrid, its parameters away from their start and its gate
    open, and the width of its map.
    """
    torch.manual_seed(0)
    # The maps here are so narrow that a hidden layer would have one unit, which may be dead.
    takes = inspect.signature(BUILDER.registry.resolve(BlockSpec, name).load()).parameters
    params = {"hidden_channels": 4} if "hidden_channels" in takes else {}
    patches = {path: {"wrap": {"type": name, "params": params}}}
    model = BUILDER.from_backbone(f"tvc-kit:{backbone}", weights=None, patches=patches)
    assert model.step0_difference == 0.0
    patch: Any = model.get_submodule(model.patch_records[0].paths[0])
    with torch.no_grad():
        for parameter in patch.block.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if patch.alpha is not None:
            patch.alpha.fill_(gate)
    return patch.eval(), model.stage_info[0].channels


@every_block
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_as_inserted_it_is_mixed_with_its_map(
    name: str, memory_format: torch.memory_format
) -> None:
    """Block and gate are one computation where a block can do that; here they are two, in float64,
    with autograd's derivatives of plain code.
    """
    patch, channels = inserted(name, "maps", "layer1", gate=0.7)
    for size in ((6, 5), (1, 1), (14, 14)):
        x = map_of(2, channels, *size).to(memory_format=memory_format).requires_grad_()
        toward = map_of(2, channels, *size).sin()
        patch.zero_grad()
        y = patch(x)
        (y * toward).sum().backward()
        found = [y, x.grad, *(p.grad for p in patch.parameters())]

        plain = copy.deepcopy(patch.block).double()
        alpha = None if patch.alpha is None else patch.alpha.detach().double().requires_grad_()
        given = x.detach().double().requires_grad_()
        if alpha is None:  # it starts as the identity by itself
            expected = plain(given)
        elif SPECS[name].gated:
            expected = given * (1 + alpha * (plain.gate(given) - 1))
        else:
            expected = given + alpha * (plain(given) - given)
        of = [*([] if alpha is None else [alpha]), *plain.parameters()]
        gradients = torch.autograd.grad((expected * toward).sum(), [given, *of])
        for one, other in zip(found, [expected, *gradients], strict=True):
            assert one is not None
            close(one, other, 1e-4)  # a normalization of one value multiplies rounding by 300


@every_block
def test_a_block_takes_maps_with_channels_last(name: str) -> None:
    patch, channels = inserted(name, "channels_last", "stage1")
    x = map_of(2, 5, 7, channels)
    close(patch(x), patch.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), 1e-5)


@every_block
def test_a_block_takes_tokens_as_the_map_that_they_are(name: str) -> None:
    patch, channels = inserted(name, "tokens", "layers.0")
    prefix, height, width = patch.view.prefix, patch.view.height, patch.view.width
    x = map_of(2, prefix + height * width, channels)
    front, rest = x.split([prefix, height * width], 1)
    expected = [
        patch.block(token[:, :, None, None]).flatten(1)[:, None] for token in front.unbind(1)
    ]
    grid = rest.transpose(1, 2).unflatten(2, (height, width))
    expected.append(patch.block(grid).flatten(2).transpose(1, 2))
    assert prefix == 1
    close(patch(x), torch.cat(expected, 1), 1e-5)


# -- what tools do with it -------------------------------------------------------------------------


@every_block
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    block, x = make(name, 2).double(), map_of(2, 2, 3, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(block, (x,))


@every_block
def test_vmap_maps_over_batches_and_over_gradients_of_images(name: str) -> None:
    block, x = make(name, 8), map_of(3, 2, 8, 5, 4)
    close(torch.func.vmap(block)(x), torch.stack([block(batch) for batch in x]), 1e-5)
    parameters = dict(block.named_parameters())
    if not parameters:
        return

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(block, parameters, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[0])
    for number, image in enumerate(x[0]):
        block.zero_grad()
        block(image[None]).square().sum().backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None, key
            close(found[key][number], parameter.grad, 1e-4)


@every_block
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_one_graph_without_breaks_serves_every_size(name: str, training: bool) -> None:
    block = make(name, 8).train(training)
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
        for shape in ((2, 8, 16, 12), (3, 8, 9, 21), (4, 8, 31, 6)):
            x = map_of(*shape)
            state = {key: value.clone() for key, value in block.state_dict().items()}
            found = compiled(x)
            block.load_state_dict(state)
            close(found, block(x), 1e-5)
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 1


def dynamic() -> Any:
    return (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)


@every_block
def test_one_export_serves_sizes_that_it_did_not_see(name: str) -> None:
    if name == "ema_attention" and torch.__version__.startswith("2.10."):
        pytest.skip("torch 2.10 lets the program refuse maps that are one pixel high")
    block = make(name, 8)
    program = torch.export.export(block, (map_of(2, 8, 16, 12),), dynamic_shapes=dynamic())
    for shape in UNSEEN:
        x = map_of(*shape)
        close(program.module()(x), block(x), 1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.sweep]) for n in NAMES]
)
def test_onnx_runtime_gives_the_same_at_sizes_that_the_export_did_not_see(name: str) -> None:
    pytest.importorskip("onnx", reason="exports to ONNX need it")
    pytest.importorskip("onnxscript", reason="exports to ONNX need it")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    block = make(name, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            block, (map_of(2, 8, 16, 12),), dynamic_shapes=dynamic(), dynamo=True, verbose=False
        )
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    for shape in UNSEEN:
        x = map_of(*shape)
        (found,) = session.run(None, {given.name: x.numpy()})
        close(torch.from_numpy(found), block(x), 1e-5)
