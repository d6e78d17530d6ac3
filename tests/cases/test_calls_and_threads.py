"""State of one call belongs to the call, and nothing borrowed stays away."""

from __future__ import annotations

import copy
import faulthandler
import gc
import itertools
import os
import random
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import EVERY_POSITION, Tiny, difference, open_gates, ready, switching_often, trial
from process_settings import changed, interrupt, lines_of, process_settings
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel, LocalPlugin, Registry, TvcError

SWEEP = pytest.mark.sweep


def images(number: int = 6, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(1, 3, size, size, generator=generator) * (i + 1) for i in range(number)]


def calls_of(model: HybridModel) -> list[Callable[[Tensor], Any]]:
    """Return everything that computes."""
    extractor = model.feature_extractor(["stem", 1, -1])
    calls: list[Callable[[Tensor], Any]] = [
        model,
        model.get_stage_outputs,
        lambda x: model.get_stage_outputs(x, [0]),
        lambda x: model.get_stage_outputs(x, ["stem", -1]),
        model.forward_features,
        model.pyramid,
        lambda x: model.forward_head(model.forward_features(x)),
        lambda x: model.forward_head(model.forward_features(x), pre_logits=True),
        extractor,
    ]
    return calls


# -- many threads, one model -----------------------------------------------------------------------

SIZES = [pytest.param(25, id="short"), pytest.param(200, id="long", marks=SWEEP)]


@pytest.mark.parametrize("calls", SIZES)
def test_four_threads_on_a_patched_model(calls: int) -> None:
    model = ready("resnet18", EVERY_POSITION)
    assert trial(calls_of(model), images(), calls=calls) == (0, [])


@pytest.mark.parametrize("calls", SIZES)
def test_four_threads_on_a_hybrid_of_timm(calls: int) -> None:
    pytest.importorskip("timm")
    patches = {
        "stage:*.-1": {"wrap": {"type": "se", "position": "branch"}},
        "layer4.0.conv2": {"inject": {"type": "squeeze_excitation", "position": "parallel"}},
    }
    model = ready("timm/test_resnet", patches)
    assert trial(calls_of(model), images(), calls=calls) == (0, [])


@pytest.mark.parametrize("calls", SIZES)
def test_four_threads_on_dense_backbones(calls: int) -> None:
    from tvc_dense import as_detection_backbone, as_segmentation_backbone

    model = ready("resnet18", EVERY_POSITION)
    dense = as_detection_backbone(model, 16).eval()
    segmentation = as_segmentation_backbone(model).eval()
    both = [dense, segmentation, model, model.get_stage_outputs]
    assert trial(both, images(), calls=calls) == (0, [])


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "mobilenet_v3_small", "timm/test_vit"])
def test_threads_on_other_layouts(name: str) -> None:
    small = {"vit_b_16": 32, "timm/test_vit": 32}
    options = {"image_size": small[name]} if name in small else {}
    model = HybridBuilder().from_backbone(name, None, num_classes=4, **options).eval()
    size = small.get(name, 64)
    calls = [model, model.get_stage_outputs, model.forward_features]
    assert trial(calls, images(3, size), threads=3, calls=4) == (0, [])


def test_without_in_one_thread_while_others_run() -> None:
    """Isolated to its thread, or refused while others run; never another's result."""
    model = ready("resnet18", EVERY_POSITION)
    xs = images(3)
    with torch.no_grad():
        patched = [model(x) for x in xs]
        with model.without():
            plain = [model(x) for x in xs]
        assert difference(plain, patched) > 1e-3
        wrong: list[str] = []
        refused: list[str] = []
        stop = threading.Event()

        def serve() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                with torch.no_grad():
                    if difference(model(xs[n % 3]), patched[n % 3]) > 1e-5:
                        wrong.append("others")

        def switch() -> None:
            for n in range(20):
                try:
                    with torch.no_grad(), model.without():
                        found = model(xs[n % 3])
                except TvcError as error:
                    refused.append(str(error))
                    continue
                if difference(found, plain[n % 3]) > 1e-5:
                    wrong.append("without")
            stop.set()

        with switching_often():
            threads = [threading.Thread(target=serve) for _ in range(2)]
            threads.append(threading.Thread(target=switch))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
    assert wrong == []
    assert len(refused) in (0, 20) or all("without" in text for text in refused)
    assert difference(model(xs[0]), patched[0]) < 1e-6


def test_gradients_in_threads() -> None:
    """Training two copies at the same time gives what training them one after the other gives."""
    model = ready("resnet18", EVERY_POSITION)
    x, y = torch.randn(4, 3, 40, 40), torch.arange(4)

    def train(copied: HybridModel) -> Tensor:
        copied.train()
        copied.set_grad_checkpointing()
        for _ in range(2):
            maps = copied.get_stage_outputs(x)
            loss = nn.functional.cross_entropy(copied(x), y) + maps[2].square().mean()
            loss.backward()
        return torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None])

    right = train(copy.deepcopy(model))
    with switching_often(), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, [copy.deepcopy(model) for _ in range(2)]))
    assert [difference(each, right) < 1e-3 for each in found] == [True, True]


def test_a_call_inside_of_a_call() -> None:
    """A hook of somebody's that asks the same model again, as attribution tools do."""
    model = ready("resnet18", EVERY_POSITION)
    x, other = images(2)
    right, inner = model.get_stage_outputs(x), model.get_stage_outputs(other, [1])
    found: list[Any] = []
    asked = [False]

    def ask(*_: Any) -> None:
        if not asked[0]:
            asked[0] = True
            found.append(model.get_stage_outputs(other, [1]))
            found.append(model(other))

    model.layer2.register_forward_hook(ask)
    assert difference(model.get_stage_outputs(x), right) < 1e-6
    assert difference(found[0], inner) < 1e-6
    assert difference(found[1], model(other)) < 1e-6


def test_an_error_inside_of_a_call_leaves_the_model() -> None:
    model = ready("resnet18", EVERY_POSITION)
    (x,) = images(1)
    right = model(x)
    handle = model.bn1.register_forward_pre_hook(lambda *_: 1 / 0)
    for call in calls_of(model)[:6]:
        with pytest.raises(ZeroDivisionError):
            call(x)
    handle.remove()
    assert difference(model(x), right) < 1e-6
    with pytest.raises(RuntimeError):
        model.get_stage_outputs(torch.randn(1, 5, 64, 64))
    assert difference(model(x), right) < 1e-6


# -- builds ----------------------------------------------------------------------------------------


TINY_PATCHES: dict[str, Any] = {
    "layer1": {"wrap": "se"},
    "layer2": {
        "inject": {
            "type": "conv_bn_act",
            "position": "parallel",
            "params": {"channels": 16, "stride": 2},
        }
    },
    "layer2.1": {"replace": {"type": "frozen_batch_norm"}},
}


def tiny(patches: Any = None) -> HybridModel:
    return HybridBuilder().from_module(
        Tiny(),
        stem="stem",
        stages=["layer1", "layer2"],
        head="fc",
        patches=TINY_PATCHES if patches is None else patches,
        num_classes=5,
    )


def random_tensors(model: nn.Module) -> list[bytes]:
    return [
        p.detach().numpy().tobytes() for p in model.parameters() if p.numel() >= 64 and p.dim() > 1
    ]


def mixed_build(number: int) -> HybridModel:
    builder = HybridBuilder()
    if number % 4 == 1:
        return builder.from_backbone("timm/test_resnet", None, num_classes=3)
    if number % 8 == 2:
        return builder.from_torchvision(
            "mobilenet_v3_small", None, num_classes=3, patches={"features.3": {"wrap": "se"}}
        )
    return tiny()


@pytest.mark.parametrize(
    "number", [pytest.param(8, id="few"), pytest.param(80, id="80", marks=SWEEP)]
)
def test_two_threads_that_build(number: int) -> None:
    pytest.importorskip("timm")
    mixed_build(1), mixed_build(2)  # imports
    before = process_settings()
    with switching_often(), ThreadPoolExecutor(2) as pool:
        models = list(pool.map(mixed_build, range(2 * number)))
    assert changed(before, but=("switch interval",)) == []
    seen = [each for model in models for each in random_tensors(model)]
    assert len(seen) > 4 * number
    assert len(seen) - len(set(seen)) == 0


def test_a_build_draws_what_a_plain_network_draws() -> None:
    """So that a seed gives the same first weights with and without patches."""
    torch.manual_seed(3)
    plain = Tiny()
    torch.manual_seed(3)
    model = tiny()
    assert torch.equal(plain.stem[0].weight, model.stem[0].weight)
    torch.manual_seed(3)
    one = tiny()
    two = tiny()
    assert not torch.equal(one.stem[0].weight, two.stem[0].weight)


@pytest.mark.parametrize("where", ["block", "op", "initializer", "backbone"])
def test_a_factory_that_raises_in_a_thread(where: str) -> None:
    plugin = LocalPlugin("acme")

    def fail(kind: str) -> None:
        if kind == where:
            torch.set_default_dtype(torch.float64)
            torch.backends.mha.set_fastpath_enabled(False)
            torch.use_deterministic_algorithms(True)
            torch.set_float32_matmul_precision("medium")
            torch.set_num_threads(3)
            random.seed(0)
            os.environ["ACME"] = "1"
            raise RuntimeError("the factory's own")

    @plugin.block(name="acme_block")
    def block(in_channels: int) -> nn.Module:
        fail("block")
        return nn.Conv2d(in_channels, in_channels, 1)

    @plugin.patch_op(name="acme_op")
    def op(target: Any, block: Any) -> Any:
        fail("op")
        return target.insert(block) if hasattr(target, "insert") else None

    @plugin.initializer(name="acme_start")
    def start(module: nn.Module) -> None:
        fail("initializer")

    @plugin.backbone(name="acme_net", stem="stem", stages=["layer1", "layer2"], head="fc")
    def backbone(spec: Any, *, weights: Any) -> nn.Module:
        fail("backbone")
        return Tiny()

    patch = {"acme_op" if where == "op" else "wrap": {"type": "acme_block", "init": "acme_start"}}
    builder = HybridBuilder(plugins=[plugin])
    before = process_settings()
    failed: list[BaseException] = []

    def build() -> None:
        try:
            builder.from_backbone("acme_net", None, patches={"layer1": patch})
        except TvcError as error:
            failed.append(error)

    try:
        for _ in range(2):
            thread = threading.Thread(target=build)
            thread.start()
            thread.join(60)
        build()
        assert len(failed) == 3
        assert all("the factory's own" in str(error) for error in failed)
        assert changed(before, but=("seed of torch",)) == []
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
        os.environ.pop("ACME", None)


# -- interrupts ------------------------------------------------------------------------------------


def strided(lines: list[tuple[str, int]], number: int | None) -> list[tuple[str, int]]:
    return lines if number is None else lines[:: max(1, len(lines) // number)]


NUMBERS = [pytest.param(40, id="some"), pytest.param(None, id="all", marks=SWEEP)]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_in_a_build(number: int | None) -> None:
    x = torch.randn(1, 3, 32, 32)
    tiny()
    lines = lines_of(tiny)
    assert len(lines) > 200
    before = process_settings()
    wrong: list[Any] = []
    for line in strided(lines, number):
        interrupt(tiny, line)
        if found := changed(before):
            wrong.append((line, found))
        model = tiny().eval()
        if not model(x).isfinite().all() or len(model.patch_records) != 3:
            wrong.append((line, "the next build"))
    assert wrong == []


def test_an_interrupt_in_a_look_beside_a_thread() -> None:
    """A look then enters a mode of this thread's own, which must not stay."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        tiny()
        lines = [line for line in lines_of(tiny) if line[0].endswith("probing.py")]
        before = process_settings()
        wrong = []
        for line in lines:
            interrupt(tiny, line)
            if found := changed(before):
                wrong.append((line, found))
    finally:
        over.set()
        other.join()
    assert len(lines) > 20 and wrong == []


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_in_from_module_leaves_the_network(number: int | None) -> None:
    """It becomes the hybrid in place: whole, or not at all."""
    network = Tiny().eval()
    x = torch.randn(1, 3, 32, 32)
    right = network(x)

    def build(net: nn.Module) -> HybridModel:
        return HybridBuilder().from_module(
            net, stem="stem", stages=["layer1", "layer2"], head="fc", patches=TINY_PATCHES
        )

    lines = lines_of(lambda: build(copy.deepcopy(network)))
    wrong: list[Any] = []
    for line in strided(lines, number):
        copied = copy.deepcopy(network)
        interrupt(lambda net=copied: build(net), line)
        if isinstance(copied, HybridModel):
            copied.eval()
            if copied.explain() == "":
                wrong.append((line, "half a hybrid"))
        elif type(copied) is not Tiny or list(copied.state_dict()) != list(network.state_dict()):
            wrong.append((line, "half changed"))
        elif difference(copied(x), right) or any(m._forward_hooks for m in copied.modules()):
            wrong.append((line, "computes something else"))
    assert wrong == []


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("call", ["get_stage_outputs", "pyramid", "forward_features", "forward"])
def test_an_interrupt_in_a_pass(call: str, number: int | None) -> None:
    model = open_gates(tiny()).eval()
    x = torch.randn(1, 3, 32, 32)
    function = model if call == "forward" else getattr(model, call)
    right, maps = model(x), model.get_stage_outputs(x)
    before = process_settings()
    wrong: list[Any] = []
    for line in strided(lines_of(lambda: function(x)), number):
        interrupt(lambda: function(x), line)
        try:
            if difference(model(x), right) or difference(model.get_stage_outputs(x), maps):
                wrong.append((line, "another result"))
        except BaseException as error:
            wrong.append((line, repr(error)))
        if found := changed(before):
            wrong.append((line, found))
    assert wrong == []


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_in_unpatch(number: int | None) -> None:
    """Afterwards the patches are there or gone, and unpatch takes them out."""
    model = open_gates(tiny()).eval()
    x = torch.randn(1, 3, 32, 32)
    patched = model(x)
    plain_model = copy.deepcopy(model)
    plain_model.unpatch()
    plain = plain_model.eval()(x)
    lines = lines_of(copy.deepcopy(model).unpatch)
    before = process_settings()
    wrong: list[Any] = []
    for line in strided(lines, number):
        copied = copy.deepcopy(model)
        interrupt(copied.unpatch, line)
        if found := changed(before):
            wrong.append((line, found))
        try:
            copied.eval()
            found = copied(x)
            whole = difference(found, patched) < 1e-6 and len(copied.patch_records) == 3
            gone = difference(found, plain) < 1e-6 and not copied.patch_records
            if not (whole or gone):
                wrong.append((line, "half of the patches"))
            copied.explain()
            copied.unpatch()
            if difference(copied.eval()(x), plain) > 1e-6:
                wrong.append((line, "the next unpatch"))
        except BaseException as error:
            wrong.append((line, repr(error)))
    assert wrong == []


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_in_without(number: int | None) -> None:
    model = open_gates(tiny({"layer1": {"wrap": "se"}})).eval()
    x = torch.randn(1, 3, 32, 32)
    right = model(x)

    def use() -> None:
        with model.without():
            model(x)

    wrong = []
    for line in strided(lines_of(use), number):
        interrupt(use, line)
        if difference(model(x), right):
            wrong.append(line)
    assert wrong == []


def test_an_interrupt_in_freezing_can_be_repeated() -> None:
    model = tiny()
    right = copy.deepcopy(model)
    right.freeze_backbone(unfreeze_stages=[-1])
    expected = {name: p.requires_grad for name, p in right.named_parameters()}
    for line in strided(lines_of(lambda: copy.deepcopy(model).freeze_backbone()), 30):
        copied = copy.deepcopy(model)
        interrupt(lambda net=copied: net.freeze_backbone(unfreeze_stages=[-1]), line)
        copied.freeze_backbone(unfreeze_stages=[-1])
        assert {n: p.requires_grad for n, p in copied.named_parameters()} == expected, line


# -- forks -----------------------------------------------------------------------------------------


def forked(work: Callable[[], int], told: Path) -> int | None:
    """Return the exit code of a child that does this work; None if it hangs inside torch.

    A thread that draws random numbers or runs a convolution holds locks of torch's own, and a child
    that is forked meanwhile never gets them: without us, 3 of 100 children hang in `nn.Conv2d`. A
    lock of ours would be waited for in a line of ours.

    Args:
        told: the file to which a child that hangs writes where it does.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with told.open("w") as file:
                faulthandler.dump_traceback_later(20, file=file, exit=True)
                code = work()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    innermost = re.search(r'File "(.+?)"', told.read_text())
    hangs_in_torch = innermost is not None and "torch" in Path(innermost[1]).parts
    return None if hangs_in_torch else code


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("busy", ["lists", "builds", "runs"])
def test_a_child_works_while_a_thread_of_its_parent_does(busy: str, tmp_path: Path) -> None:
    model = open_gates(tiny()).eval()
    x = torch.randn(1, 3, 32, 32)
    right = model.get_stage_outputs(x)
    stop = threading.Event()
    work: dict[str, Callable[[], Any]] = {
        "lists": Registry,
        "builds": tiny,
        "runs": lambda: model.get_stage_outputs(x),
    }

    def keep_busy() -> None:
        while not stop.is_set():
            work[busy]()

    def child() -> int:
        listed = "se" in HybridBuilder.list_blocks()
        same = difference(model.get_stage_outputs(x), right) < 1e-6
        built = tiny().eval()(x).isfinite().all()
        return 0 if listed and same and built else 2

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        tries = (forked(child, tmp_path / "told") for _ in range(20))
        results = list(itertools.islice((code for code in tries if code is not None), 3))
    finally:
        stop.set()
        thread.join()
    assert results == [0, 0, 0]


# -- freed -----------------------------------------------------------------------------------------


def used(model: HybridModel) -> None:
    x = torch.randn(1, 3, 64, 64)
    model.get_stage_outputs(x)
    model.pyramid(x)
    model.train()(x.repeat(2, 1, 1, 1)).sum().backward()
    model.freeze_backbone()
    model.set_grad_checkpointing()
    with model.without():
        model(x.repeat(2, 1, 1, 1))
    model.explain()
    model.reset_classifier(3)


def unpatched(model: HybridModel) -> None:
    model.unpatch()


def extracted(model: HybridModel) -> None:
    model.feature_extractor([-1])(torch.randn(1, 3, 64, 64))


def adapted(model: HybridModel) -> None:
    from tvc_dense import as_detection_backbone

    as_detection_backbone(model)(torch.randn(2, 3, 64, 64))


def copied(model: HybridModel) -> None:
    copy.deepcopy(model)(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("use", [used, unpatched, extracted, adapted, copied])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet"])
def test_a_used_hybrid_is_freed_at_once(use: Callable[[HybridModel], None], name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    patches = {
        "stage:*.-1": {"wrap": {"type": "se", "position": "branch"}},
        "layer4.0.conv2": {"inject": {"type": "squeeze_excitation", "position": "parallel"}},
    }
    use(HybridBuilder().from_backbone(name, None, patches=patches, num_classes=4))  # imports
    gc.collect()
    gc.disable()
    try:
        model = HybridBuilder().from_backbone(name, None, patches=patches, num_classes=4)
        use(model)
        watched = [weakref.ref(p) for p in model.parameters()]
        del model
        assert [ref() for ref in watched if ref() is not None] == []
    finally:
        gc.enable()


def test_a_parallel_patch_keeps_no_input() -> None:
    """Nothing of a call stays with the model."""
    model = ready("resnet18", EVERY_POSITION)
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(1, 3, 64, 64)
        watched = weakref.ref(x)
        with torch.no_grad():
            model.get_stage_outputs(x)
            model(x)
        del x
        assert watched() is None
    finally:
        gc.enable()
