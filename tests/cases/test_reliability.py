"""Threads, interrupts, forks, recipes that reach out, what trains: one case a test."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import difference, switching_often, trial
from process_settings import interrupt
from torch import Tensor, nn

from tvc_core import (
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    TvcError,
    load_yaml_recipe,
)


def build(name: str = "resnet18", **arguments: Any) -> HybridModel:
    arguments.setdefault("num_classes", 4)
    return HybridBuilder().from_torchvision(name, None, **arguments)


# -- R1 --------------------------------------------------------------------------------------------


def test_r1_a_parallel_patch_in_two_threads() -> None:
    model = build(patches={"layer1": {"inject": {"type": "se", "position": "parallel"}}}).eval()
    model.get_submodule("patches.layer1.se").alpha.data.fill_(0.7)
    images = [torch.randn(1, 3, 32, 32) for _ in range(2)]
    assert trial([model], images, threads=2, calls=40) == (0, [])


def test_r1_maps_in_two_threads() -> None:
    model = build().eval()
    images = [torch.randn(1, 3, 32, 32) for _ in range(2)]
    assert trial([model.get_stage_outputs], images, threads=2, calls=40) == (0, [])


def test_r1_an_interrupt_in_a_feature_pass_leaves_the_model_alive() -> None:
    """An interrupt at each line of the frames of tvc that a feature pass runs in."""
    model = build().eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        right = model(x)
        dead = []
        for line in range(400):
            reached = interrupt(lambda: model.get_stage_outputs(x, [0]), line)
            if not reached:
                break
            try:
                if difference(model(x), right):
                    dead.append(line)
            except BaseException as error:
                dead.append(f"{line}: {type(error).__name__}")
                model.get_stage_outputs(x)
        assert line > 5
        assert dead == []


# -- R2 --------------------------------------------------------------------------------------------


def tiny() -> HybridModel:
    network = nn.Sequential()
    network.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    network.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    network.pool = nn.AdaptiveAvgPool2d(1)
    network.flatten = nn.Flatten()
    network.fc = nn.Linear(16, 4)
    patches = {"stage": {"wrap": "se"}}
    return HybridBuilder().from_module(
        network, stem="stem", stages=["stage"], head="fc", patches=patches
    )


def test_r2_two_builders_leave_the_kernels_of_attention() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        with switching_often(), ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: tiny(), range(60)))
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_r2_models_built_in_threads_are_no_twins() -> None:
    with switching_often(), ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda _: tiny(), range(80)))
    seen = [
        parameter.detach().numpy().tobytes()
        for model in models
        for parameter in model.parameters()
        if parameter.numel() > 64 and parameter.dim() > 1  # random ones
    ]
    assert len(seen) >= 160
    assert len(seen) - len(set(seen)) == 0


# -- R3 --------------------------------------------------------------------------------------------


INTERRUPTS = """
import os, pickle, signal, sys
from tvc_core import HybridBuilder, Registry

def state():
    return (
        sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, signal.signal,
        signal.getsignal(signal.SIGINT), os.getcwd(), dict(os.environ),
    )

def lines_of_the_first_registry():
    lines = {}
    def trace(frame, event, _):
        if "tvc_core" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines[frame.f_code.co_filename, frame.f_lineno] = None
        return trace
    sys.settrace(trace)
    Registry()
    sys.settrace(None)
    return list(lines)

def interrupted(line):
    before, reached = state(), []
    def trace(frame, event, _):
        if "tvc_core" not in frame.f_code.co_filename:
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == line:
            sys.settrace(None)
            reached.append(line)
            raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try:
        Registry()
    except BaseException:
        pass
    sys.settrace(None)
    signal.alarm(20)  # it hangs where a lock was kept
    if not reached:
        return "not reached"
    if state() != before:
        return "changed"
    return "right" if "resnet18" in HybridBuilder.list_backbones() else "lists nothing"

def in_a_child(function, *args):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(write, pickle.dumps(function(*args)))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else "hangs"

wanted = [line for line in in_a_child(lines_of_the_first_registry) if SELECTED]
found = {line: in_a_child(interrupted, line) for line in wanted}
wrong = {line: result for line, result in found.items() if result != "right"}
print("wrong:", wrong, "of", len(wanted))
assert len(wanted) > 20
"""


@pytest.mark.parametrize(
    "selected",
    [
        pytest.param("'quarantine' in line[0] or 'registry/loading' in line[0]", id="guard"),
        pytest.param("True", id="all", marks=pytest.mark.sweep),
    ],
)
def test_r3_an_interrupt_while_plugins_load_leaves_streams_signals_and_lock(selected: str) -> None:
    """An interrupt at each line that the main thread runs; the next registry works."""
    done = run_python(INTERRUPTS.replace("SELECTED", selected), timeout=590)
    assert "wrong: {} of" in done.stdout, done.stdout + done.stderr[-3000:]


def run_python(code: str, timeout: int = 120, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_r3_a_child_lists_while_a_thread_of_its_parent_did(tmp_path: Path) -> None:
    slow = tmp_path / "acme_slow_plugin.py"
    slow.write_text("TVC_API = (1, 0)\nimport time\ntime.sleep(3)\n")
    info = tmp_path / "acme_slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tvc.plugins]\nslow = acme_slow_plugin\n")
    (info / "RECORD").write_text("")
    code = """
    import os, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore")
    from tvc_core import HybridBuilder
    thread = threading.Thread(target=HybridBuilder.list_blocks)
    thread.start()
    time.sleep(1)
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        os._exit(0 if "se" in HybridBuilder.list_blocks() else 3)
    _, status = os.waitpid(child, 0)
    thread.join()
    print("child", os.waitstatus_to_exitcode(status))
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run_python(code, PYTHONPATH=path)
    assert "child 0" in done.stdout, done.stdout + done.stderr[-3000:]


# -- R7 --------------------------------------------------------------------------------------------


WATCHED: list[list[tuple[str, Any]]] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    if WATCHED and (event.startswith("socket.") or event == "open"):
        WATCHED[-1].append((event, args))


@contextmanager
def watching() -> Iterator[list[tuple[str, Any]]]:
    """See what is opened and whom the process speaks to, by an audit hook."""
    if not hasattr(sys, "_tvc_case_hook"):
        sys._tvc_case_hook = True  # a hook stays for good
        sys.addaudithook(watch)
    seen: list[tuple[str, Any]] = []
    WATCHED.append(seen)
    try:
        yield seen
    finally:
        WATCHED.remove(seen)


@pytest.mark.parametrize(
    "options",
    [
        "{pretrained_cfg_overlay: {url: 'http://127.0.0.1:9/x/innocent.pth', hf_hub_id: ''}}",
        "{pretrained_cfg_overlay: {url: 'http://127.0.0.1:9/x.pth', hf_hub_id: ''}, "
        "cache_dir: 'FOLDER'}",
        "{pretrained_cfg_overlay: {file: 'FOLDER/secret.pth'}}",
        "{cache_dir: 'FOLDER'}",
    ],
    ids=["address", "address-and-folder", "file", "folder"],
)
def test_r7_a_recipe_reaches_nothing(options: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    torch.save({}, folder / "secret.pth")
    recipe = tmp_path / "r.yaml"
    text = options.replace("FOLDER", str(folder))
    recipe.write_text(f"backbone:\n  name: timm/test_resnet\n  options: {text}\n")
    with watching() as seen, pytest.raises(TvcError, match=r"overlay|cache_dir"):
        load_yaml_recipe(recipe)
    reached = [
        (event, args)
        for event, args in seen
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
        or (event == "open" and str(args[0]).startswith(str(folder)))
    ]
    assert reached == []
    assert [path.name for path in folder.iterdir()] == ["secret.pth"]


# -- R12 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 96])
def test_r12_drop_block_on_even_maps_trains(size: int) -> None:
    model = build(num_classes=3, patches={"layer4": {"wrap": "drop_block"}}).train()
    assert model(torch.randn(2, 3, size, size)).isfinite().all()


def test_r12_a_block_with_an_inplace_neighbour_trains_or_is_refused() -> None:
    try:
        model = build(num_classes=3, patches={"layer1.0.bn1": {"replace": "conv_bn_act"}})
    except TvcError as error:
        assert "layer1.0.bn1" in str(error)
        return
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()


def test_r12_a_width_behind_an_exchanged_head() -> None:
    block = {"type": "cbam_block", "position": "before"}
    x = torch.randn(2, 3, 64, 64)
    try:
        model = build("squeezenet1_1", num_classes=3, patches={"classifier.2": {"inject": block}})
    except TvcError as error:  # not torch's own
        assert "classifier.2" in str(error)
        return
    assert model.eval()(x).shape == (2, 3)


# -- R13 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "resnet18"])
def test_r13_a_dropped_hybrid_is_freed_at_once(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    builder = HybridBuilder()
    gc.collect()
    gc.disable()
    try:
        model = builder.from_backbone(name, weights=None)
        watched = weakref.ref(next(model.parameters()))
        del model
        assert watched() is None
    finally:
        gc.enable()


def test_r13_a_class_made_in_a_function_is_freed() -> None:
    def once() -> weakref.ref[type]:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.stage = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 8, 3, 2)
                self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.pool(self.stage(self.stem(x))).flatten(1))

        HybridBuilder().from_module(Net(), stem="stem", stages=["stage"], head="fc")
        return weakref.ref(Net)

    classes = [once() for _ in range(2)]
    gc.collect()
    assert [found() for found in classes] == [None, None]


# -- R14 -------------------------------------------------------------------------------------------


def change_dtype() -> None:
    torch.set_default_dtype(torch.float64)


def change_grad_mode() -> None:
    torch.set_grad_enabled(False)


def change_seeds() -> None:
    random.seed(1)
    torch.manual_seed(1)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(1)


def settings() -> tuple[Any, ...]:
    import numpy as np

    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def seed_everything() -> None:
    import numpy as np

    random.seed(99)
    torch.manual_seed(99)
    np.random.seed(99)


@pytest.mark.parametrize("change", [change_dtype, change_grad_mode, change_seeds])
@pytest.mark.parametrize("kind", ["block", "backbone", "initializer"])
@pytest.mark.parametrize("fails", [True, False])
def test_r14_a_factory_leaves_the_process(change: Any, kind: str, fails: bool) -> None:
    if change is change_seeds and not fails:
        pytest.skip("a factory may draw random numbers, and nothing tells that from a seed")
    plugin = LocalPlugin("acme")

    @plugin.block(name="rude_block")
    def block(in_channels: int) -> nn.Module:
        if kind == "block":
            change()
            if fails:
                raise ValueError("no such day")
        return nn.BatchNorm2d(in_channels)

    @plugin.backbone(
        name="rude_net",
        stem=("conv1", "bn1"),
        stages=["layer1", "layer2", "layer3", "layer4"],
        head="fc",
    )
    def backbone(spec: Any, *, weights: Any) -> nn.Module:
        if kind == "backbone":
            change()
            if fails:
                raise ValueError("no such day")
        return torchvision.models.resnet18(num_classes=4)

    @plugin.initializer(name="rude_start")
    def start(module: nn.Module) -> None:
        if kind == "initializer":
            change()
            if fails:
                raise ValueError("no such day")

    patch = {"wrap": {"type": "rude_block", "init": "rude_start"}}
    builder = HybridBuilder(plugins=[plugin])
    build_it = lambda: builder.from_backbone("rude_net", None, patches={"layer1": patch})  # noqa: E731
    seed_everything()
    before = settings()
    try:
        if fails:
            with pytest.raises(TvcError, match="no such day"):
                build_it()
            assert torch.initial_seed() == 99
        else:
            build_it()
        assert settings() == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)


def test_r14_the_error_is_the_factorys() -> None:
    plugin = LocalPlugin("acme")

    @plugin.block(name="rude_block")
    def block(in_channels: int) -> nn.Module:
        change_dtype()
        raise ValueError("no such day")

    try:
        with pytest.raises(ParameterError, match="no such day"):
            HybridBuilder(plugins=[plugin]).from_torchvision(
                "resnet18", None, patches={"layer1": {"wrap": "rude_block"}}
            )
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
