"""Phases, optimizers, normalization and methods, each against a second derivation."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from tvc_train import (
    DataError,
    Method,
    MethodSpec,
    Phase,
    PhaseSchedule,
    TrainingError,
    choosing,
    fit,
)
from tvc_train.averaging import MovingAverage
from tvc_train.data import Transforms
from tvc_train.devices import Devices
from tvc_train.fitting import as_recipe, preview
from tvc_train.losses import Loss
from tvc_train.methods import LinearProbeFirst, ProgressiveSizes, Temperature, WiseFineTuning
from tvc_train.normalization import Normalization, default_normalization
from tvc_train.optimizers import OptimizerSettings
from tvc_train.planning import make_plan

from tvc_core import (
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    RecipeError,
    Registry,
    StageError,
)

Make = Callable[..., dict[str, Any]]


def toy() -> HybridModel:
    return HybridBuilder().from_backbone("resnet18", weights=None, num_classes=3)


def test_a_rate_warms_up_and_falls_as_a_cosine() -> None:
    phase = Phase(epochs=10, rate=2.0, warmup=1)
    assert [phase.factor(step, 4) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert phase.factor(4, 4) == 1.0
    assert phase.factor(22, 4) == pytest.approx(0.5)  # half of the 36 steps after warming up
    assert phase.factor(39, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi * 35 / 36)))
    assert Phase(epochs=1, schedule="linear").factor(3, 4) == 0.25
    assert Phase(epochs=1, schedule="constant").factor(3, 4) == 1.0
    # of more steps than a schedule was told of, none goes uphill
    assert [Phase(epochs=1, schedule=s).factor(6, 4) for s in ("linear", "cosine")] == [0, 0]


def test_what_a_program_misspells_is_no_other_schedule_or_optimizer() -> None:
    with pytest.raises(ParameterError, match=r"no schedule 'cosin'. Did you mean 'cosine'\?"):
        Phase(epochs=1, schedule="cosin")
    with pytest.raises(ParameterError, match=r"no optimizer 'adam'. Did you mean 'adamw'\?"):
        OptimizerSettings(name="adam")
    with pytest.raises(ParameterError, match=r"momentum of an optimizer is .* below 1, not 1.5"):
        OptimizerSettings(name="sgd", momentum=1.5)
    model, schedule = toy(), PhaseSchedule([], 1)
    for thaw in ("all", ["all"], ("all",)):
        schedule.freeze(model, Phase(epochs=1, thaw=thaw))  # type: ignore[arg-type]
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 0}, {"epochs": 1.5}, {"rate": -1}, {"rate": math.nan}, {"rate": "0.1"},
        {"thaw": None}, {"thaw": ()}, {"warmup": -1}, {"layer_decay": 2}, {"stop_early": 0},
        {"normalization": "tarin"}, {"size": 0},
    ],
)  # fmt: skip
def test_a_phase_of_a_program_takes_what_one_of_a_recipe_takes(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"{next(iter(given))} of a phase is .*, not "):
        Phase(**{"epochs": 1, **given})


def test_what_no_schedule_can_follow_is_refused() -> None:
    one: Any = Phase(epochs=1)
    for phases, more, said in (
        ([{"epochs": 1}], {}, "is a Phase, not {'epochs': 1}"),
        ([Phase(epochs=1, warmup=2)], {}, "a warm-up of 2 epochs never ends in phase 'head' of 1"),
        ([one], {"steps": 0}, "the steps of an epoch are a whole number of at least 1, not 0"),
        ([one], {"optimizer": "sgd"}, r"such as OptimizerSettings\(name='sgd'\), not 'sgd'"),
    ):
        with pytest.raises(ParameterError, match=said):
            PhaseSchedule(phases, **{"steps": 1, **more})
    model, schedule = toy(), PhaseSchedule([one], steps=1)
    plain: Any = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="for a hybrid of tvc itself, not for a Linear"):
        schedule.begin(plain, one)
    optimizer = schedule.begin(model, one)
    optimizer.add_param_group({"params": plain.parameters()})
    with pytest.raises(TrainingError, match="group 2 of the optimizer is none of a phase"):
        schedule.set_rates(optimizer, one, 0)
    with pytest.raises(TrainingError, match=r"2 of the 4 parameters .* are not of this model"):
        schedule.begin(model, one, optimizer)


def test_an_optimizers_state_goes_along_by_name_through_a_refreeze() -> None:
    model = toy()
    phases = [Phase(epochs=1), Phase(epochs=1, thaw=("layer4",)), Phase(epochs=1)]
    schedule = PhaseSchedule([*phases, phases[1]], 1)
    optimizer, names = None, []
    states: list[dict[str, float]] = []
    for phase in schedule.phases:
        optimizer = schedule.begin(model, phase, optimizer)
        names.append({n for n, p in model.named_parameters() if p.requires_grad})
        model(torch.ones(2, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        known = {id(p): n for n, p in model.named_parameters()}
        states.append({known[id(p)]: float(s["step"]) for p, s in optimizer.state.items()})
    assert names[0] == names[2] == {"fc.weight", "fc.bias"}
    assert names[1] == names[3] == names[0] | {n for n in names[1] if n.startswith("layer4.")}
    assert [state["fc.weight"] for state in states] == [1, 2, 3, 4]
    assert (states[1]["layer4.0.conv1.weight"], states[3]["layer4.0.conv1.weight"]) == (1, 2)


def test_patterns_name_stages_and_an_unknown_one_is_refused_with_the_list() -> None:
    model, schedule = toy(), PhaseSchedule([Phase(epochs=1)], 1)
    schedule.freeze(model, Phase(epochs=1, thaw=("layer[34]",)))
    assert model.freeze_state()["stages"] == [0, 1]
    with pytest.raises(StageError, match=r"'layer5'.*0 \(layer1\), 1 \(layer2\)"):
        schedule.freeze(model, Phase(epochs=1, thaw=("layer5",)))


def test_fixed_normalization_of_a_thawed_part_keeps_its_statistics() -> None:
    for mode, moves in (("fixed", False), ("train", True)):
        model = toy()
        PhaseSchedule([], 1).freeze(model, Phase(epochs=1, thaw=(-1,)))
        before = model.layer4[0].bn1.running_mean.clone()
        Normalization(model, mode).training()
        model(torch.randn(4, 3, 32, 32))
        assert torch.equal(model.layer4[0].bn1.running_mean, before) != moves
        assert torch.equal(model.layer3[0].bn1.running_mean, torch.zeros(256))


def test_statistics_are_estimated_again_as_the_mean_over_batches() -> None:
    model = toy()
    normalization = Normalization(model, "reestimate")
    batches = [
        torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    normalization.estimate(batches, model)
    with torch.no_grad():
        wanted = torch.stack([model.conv1(b).mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(model.bn1.running_mean, wanted)
    assert model.bn1.momentum == 0.1


def test_statistics_are_estimated_for_the_averaged_weights(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # in the second phase the average below the cut is another than the weights
    phases = [{"epochs": 1, "thaw": "all"}, {"epochs": 1, "thaw": [-1]}]
    settings = {"normalization": "reestimate", "ema": 0.9, "keep": "last", "batch_size": 24}
    given = recipe(phases=phases, **settings)
    given["data"] |= {"augment": "none", "cache": True}
    found = fit(given, out=tmp_path / "run")
    norm = found.model.get_submodule("features.12.1")
    kept = norm.running_mean.clone()
    thawed = tuple(found.model.stage_info[-1].paths)
    for path, each in found.model.named_modules():
        if isinstance(each, nn.BatchNorm2d) and path.startswith(thawed):
            each.train().momentum = 1
    samples = found.plan.data.train
    transforms = Transforms(found.model.preprocessing)
    with torch.no_grad():
        found.model(torch.stack([transforms(samples.read(i)) for i in range(len(samples))]))
    torch.testing.assert_close(norm.running_mean, kept, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_with_the_normalization_that_it_began_with(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvc_train import choosing

    given = recipe(phases=[{"epochs": 2, "thaw": "all"}], keep="last")
    whole = fit(given, out=tmp_path / "run").run
    assert yaml.safe_load(whole.recipe.read_text())["training"]["normalization"] == "train"
    wanted = whole.model.read_bytes()
    whole.model.unlink()
    max(whole.checkpoints.glob("step-*")).unlink()
    # as other processes, each with fewer images of a step, would have it
    monkeypatch.setattr(choosing, "default_normalization", lambda *args: "fixed")
    for source in (given, whole.recipe):
        assert fit(source, out=whole.folder, resume=True).run.model.read_bytes() == wanted


def test_the_average_of_what_is_frozen_again_goes_on_to_where_it_stays() -> None:
    phases = [Phase(epochs=1, thaw=("all",)), Phase(epochs=1)]
    model, schedule, average = toy(), PhaseSchedule(phases, 3), MovingAverage(0.5)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = 0
    for phase in phases:
        optimizer = schedule.begin(model, phase)
        average.begin(model)
        for _ in range(3):
            model(torch.randn(2, 3, 32, 32)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            average.update(model, steps)
            share = 1 - min(0.5, (1 + steps) / (10 + steps))
            for name, p in model.named_parameters():
                wanted[name].lerp_(p.detach(), share)
    assert not wanted["conv1.weight"].equal(model.conv1.weight)
    for name, tensor in wanted.items():
        torch.testing.assert_close(average.tensors[name], tensor)


def test_the_gap_between_the_modes_is_found_and_nothing_changes() -> None:
    model = toy()
    images, before = (
        torch.randn(4, 3, 32, 32) * 5 + 3,
        {k: t.clone() for k, t in model.state_dict().items()},
    )
    gap = Normalization(model, "train").gap(lambda: model(images).square().mean())
    assert gap is not None and gap[0] != pytest.approx(gap[1])
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert Normalization(model, "fixed").gap(lambda: model(images).mean()) is None
    assert default_normalization(True, 32) == "fixed"
    assert default_normalization(True, 64) == default_normalization(False, 8) == "train"


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = Loss("one", smoothing=0.1, weights=torch.tensor([1.0, 2.0, 0.5]))
    whole = loss(logits, targets)
    assert float(loss(logits[:2], targets[:2]) + loss(logits[2:], targets[2:])) == pytest.approx(
        float(whole)
    )
    plain = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    assert float(Loss("one", smoothing=0.1)(logits, targets) / 6) == pytest.approx(float(plain))
    many = torch.eye(3)[targets]
    found = nn.functional.binary_cross_entropy_with_logits(logits, many)
    assert float(Loss("many")(logits, many) / 6) == pytest.approx(float(found))


def test_methods_change_phases_as_their_papers_say() -> None:
    phases = (Phase(epochs=3, rate=0.1), Phase(epochs=6, thaw=(-1,), warmup=0.5))
    probe, tune = LinearProbeFirst(factor=0.1).phases(phases, size=64)
    assert (probe.thaw, probe.epochs, tune.thaw, tune.epochs) == (("head",), 3, ("all",), 6)
    assert tune.rate == pytest.approx(0.01)
    assert (probe.warmup, tune.warmup) == (0, 0.5)
    parts = ProgressiveSizes(smallest=0.5, parts=3).phases(phases, size=64)
    assert [(p.epochs, p.size) for p in parts] == [(3, 32), (3, 48), (3, 64)]
    warm = (Phase(epochs=6, warmup=1),)
    assert [p.warmup for p in ProgressiveSizes().phases(warm, size=64)] == [1, 0, 0]


def test_a_temperature_is_the_one_with_the_least_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 4, generator=draw) * 5
    targets = torch.multinomial((logits / 3).softmax(1), 1, generator=draw)[:, 0]

    class Stub:
        labels = "one"

        def evaluate(self) -> Any:
            return type("E", (), {"logits": logits, "targets": targets})

    method = Temperature()
    method.finish(Stub())  # type: ignore[arg-type]
    found = method.facts["temperature"]
    losses = [float(Loss("one").plain(logits / (found * f), targets)) for f in (0.9, 1.0, 1.1)]
    assert min(losses) == losses[1]


def test_an_auxiliary_head_counts_for_three_tenths() -> None:
    draw = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 5, 3, generator=draw)
    targets = torch.tensor([0, 2, 1, 1, 0])
    loss, wanted = Loss("one"), nn.CrossEntropyLoss(reduction="sum")
    torch.testing.assert_close(loss((own, None), targets), wanted(own, targets))
    both = wanted(own, targets) + 0.3 * wanted(other, targets)
    torch.testing.assert_close(loss((own, other), targets), both)


class Halving(Method):
    """Halve the weights of the head at the end."""

    changes_weights = True

    def finish(self, training: Any) -> None:
        weights = training.weights()
        name = training.model.head_info[0].module
        self.facts["norm"] = float(weights[f"{name}.weight"].norm())
        training.load_weights({k: t / 2 if k.startswith(name) else t for k, t in weights.items()})


def test_a_third_party_can_offer_a_method(recipe: Make, tmp_path: Path) -> None:
    plugin = LocalPlugin("acme-methods")
    plugin.add(MethodSpec(name="halving", factory=Halving))
    registry = Registry([plugin])
    given = recipe(methods=["halving"], phases=[{"epochs": 1}])
    found = fit(given, out=tmp_path / "a", registry=registry)
    plain = fit(recipe(phases=[{"epochs": 1}], keep="last"), out=tmp_path / "b")
    weight = found.model.get_classifier().weight
    torch.testing.assert_close(weight * 2, plain.model.get_classifier().weight)


def test_accumulated_parts_give_the_gradient_of_the_whole(recipe: Make, tmp_path: Path) -> None:
    runs = [
        fit(
            recipe(
                accumulate=parts, precision="float64", normalization="fixed", phases=[{"epochs": 1}]
            ),
            out=tmp_path / str(parts),
        )
        for parts in (1, 3)
    ]
    a, b = (run.model.get_classifier().weight for run in runs)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_modes_of_the_script_around_it_are_no_part_of_a_training(
    recipe: Make, other_modes: Callable[[], Any], tmp_path: Path
) -> None:
    given = recipe(phases=[{"epochs": 1, "thaw": [-1]}])
    plain = fit(given, out=tmp_path / "a")
    torch.manual_seed(5)
    with other_modes():
        other = fit(given, out=tmp_path / "b")
        assert torch.get_default_dtype() == torch.float64 and torch.empty(0).is_meta
    assert other.run.model.read_bytes() == plain.run.model.read_bytes()
    drawn = torch.rand(3)  # what a search over rates draws between two trainings
    assert drawn.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_wise_ft_goes_out_from_the_end_of_a_phase_that_is_in_parts() -> None:
    phases = (Phase(epochs=2), Phase(epochs=2, thaw=("all",)))
    parts = ProgressiveSizes(parts=4).phases(phases, size=64)
    assert len(parts) == 4
    method = WiseFineTuning()
    method.check(parts)
    for number in range(4):
        weights = {"w": torch.tensor(float(number))}
        position = SimpleNamespace(phase=number)
        method.after_phase(SimpleNamespace(position=position, weights=lambda w=weights: w))  # type: ignore[arg-type]
    assert method.tensors == {"w": torch.tensor(1.0)}


ONE = {"training.phases": [{"epochs": 1, "rate": 0.01}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"training.methods": ["l3_sp"]},
            r"training.methods\[0\]: Unknown method 'l3_sp'.*'l2_sp'",
        ),
        ({"training.methods": [{"wise_ft": {"alpha": 2}}]}, "alpha is a number from 0 to 1, not 2"),
        (
            {"training.methods": [{"wise_ft": {"alhpa": 2}}]},
            r"methods\[0\]: method 'wise_ft': unknown key 'alhpa'. Did you mean 'alpha'",
        ),
        ({**ONE, "training.methods": ["surgical"]}, r"methods\[0\]: .*no phase thaws any"),
        ({**ONE, "training.methods": ["temperature", "wise_ft"]}, r"methods\[1\]: .*there is one"),
        (
            {"training.phases": [{"epochs": 3}], "training.methods": ["progressive", "wise_ft"]},
            r"methods\[1\]: .*there is one",
        ),
        ({**ONE, "training.methods": ["soup"]}, "last phase, and 'head' has one"),
        ({"training.methods": ["surgical", "lp_ft"]}, r"methods\[0\]: .*another method says it"),
        ({"training.methods": ["temperature", "wise_ft"]}, "wise_ft would change them .*: name it"),
        (
            {"training.phases[1].epochs": 2, "training.methods": ["wise_ft", "soup"]},
            r"\[1\]: .*what wise_ft has .* name it first",
        ),
        ({"training.methods": [{"progressive": {"parts": 2}}, "fixres"]}, r"\[1\]: .*says it: 16"),
        (
            {"training.methods": [{"fixres": {"share": 0.5}}, "lp_ft"]},
            r"methods\[1\]: .*the phases differ in size",
        ),
        (
            {"training.phases[1].normalization": "train", "training.methods": ["lp_ft"]},
            r"methods\[0\]: .*the phases differ in normalization",
        ),
        ({"training.methods": [{"wise_ft": {"alpha": 1}}]}, "as without it"),
        ({"training.methods": [{"l2_sp": {"alpha": 0, "beta": 0}}]}, "pulls nothing"),
        ({"training.methods": ["progressive"]}, "2 epochs cannot be cut into 3 parts"),
        ({"training.methods": [{"lp_ft": {"epochs": 1.9}}]}, "a whole number from 1 to .*not 1.9"),
        ({"data.size": 8, "training.methods": ["fixres"]}, "would have 8 pixels as well"),
        (
            {"training.phases": [{"epochs": 6, "warmup": 3}], "training.methods": ["lp_ft"]},
            r"methods\[0\]: .*makes 'linear probe' of 2 epochs, whose warm-up of 3 never ends",
        ),
        (
            {"backbone.name": "inception_v3", "data.size": 75},
            "data.size: .*does not take images of 75 x 75",
        ),
        (
            {"backbone.name": "squeezenet1_1", "training.methods": [{"fixres": {"share": 0.25}}]},
            "training.methods: .*does not take images of 8 x 8",
        ),
        ({"data.mean": [0, 0, 0], "data.std": [1, 1, 1e-300]}, "no finite number: look at mean"),
        ({"training.phases[0].rate": math.nan}, "rate: has to be a number above 0 .* not nan"),
        ({"training.epochs": 5}, "unknown key 'epochs'. It is a key of phases. The keys are seed"),
        ({"training.batch_size": True}, "a whole number from 1 to 1000000 or 'auto', not True"),
        ({"training.phases[0].thaw": [2.5]}, r"thaw\[0\]: has to be a whole number or text, not"),
        ({"training.phases": [{"epochs": 1, "thaw": "layer9"}]}, "no stage 'layer9' to thaw"),
        ({"training.phases": [{"epochs": 0}]}, "epochs.*from 1 to 100000, not 0"),
        ({"training.phases": [{"epochs": 1, "warmup": 1.5}]}, r"\[0\].warmup: a .* of 1.5 epochs"),
        ({"training.accumulate": 9}, r"training.accumulate: the 8 images of a step are no 9 parts"),
        ({"data.classes": ["a", "a"]}, "data.classes: the same is there twice"),
        ({"data.size": [32, 32, 3]}, "data.size: has to have at most 2 items, not 3"),
        ({"training.batchsize": 8}, "unknown key 'batchsize'. Did you mean 'batch_size'"),
        ({"training.lr": 0.1}, "unknown key 'lr'. Here that is rate, a key of phases. The keys"),
        ({"training.phases": [{"epochs": 1, "scheduler": "cosine"}]}, "is schedule. The keys are"),
        ({"training.phases": [{"epochs": 1, "batch_size": 8}]}, "It is a key of training. The"),
        ({"training.mixup": 0.2}, "unknown key 'mixup'. Here that is data.mixup. The keys"),
        ({"data.transforms": []}, "unknown key 'transforms'. Here that is augment. The keys"),
        ({"data.columns": {"image": "x"}}, "columns.image: unknown key 'image'. The keys are path"),
        ({"head.num_classes": 7}, "num_classes is 7, and the data have 3 classes"),
        ({"head.class_names": ["class0", "class1"]}, "only they have class2. Leave"),
        ({"head.class_names": ["class2", "class1", "class0"]}, "or in another order: class0, cl"),
    ],
)
def test_a_wrong_recipe_is_refused_before_the_first_step(
    recipe: Make, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        preview(recipe(), changes=change)


def test_a_dry_run_says_what_will_be_found_out(recipe: Make) -> None:
    given = recipe(batch_size="auto", phases=[{"epochs": 2, "rate": "auto"}])
    said = preview(given)
    assert said["phase 1"] == "head: 2 epochs, rate auto" and said["batches"] == "of auto images"
    assert "notes" not in said and "methods" not in said
    said = preview({**given, "data": {"size": 32}})
    assert said["notes"] == "data has no path, so the images are scikit-learn's digits"


def test_a_dry_run_looks_at_the_folder_of_the_run(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert preview(recipe())["run"] == str(Path("runs", "toy"))
    assert preview(recipe(), out="new", resume=True)["run"] == "new"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    with pytest.raises(TrainingError, match=r"has model\.safetensors already"):
        preview(recipe(), out="model")
    assert preview(recipe(), out="model", force=True)["run"] == "model"
    fit(recipe(), out="done")
    with pytest.raises(TrainingError, match="has a run already"):
        preview(recipe(), out="done")
    assert preview(recipe(), out="done", resume=True)["run"] == "done, which goes on"
    with pytest.raises(TrainingError, match=r"another run.*training\.momentum"):
        preview(recipe(momentum=0.5), out="done", resume=True)
    assert not Path("runs").exists() and not Path("new").exists()


def test_what_has_no_effect_is_said(recipe: Make) -> None:
    given = recipe(momentum=0.5, batch_size=99, phases=[{"epochs": 2, "stop_early": 2}])
    given |= {"freeze_backbone": {"normalization": "eval"}, "unfreeze_stages": [-1]}
    notes = preview(given)["notes"].split("; ")
    said = (
        r"the phases .* not freeze_backbone\.normalization, unfreeze_stages",
        r"training\.momentum has no effect: only 'optimizer: sgd'",
        r"training\.batch_size is 99, and there are 18 images",
        r"stop_early of phase 'head' has no effect: it waits for 2",
    )
    assert all(re.match(*pair) for pair in zip(said, notes, strict=True)), notes
    fine = {"optimizer": "sgd", "momentum": 0.5, "phases": [{"epochs": 3, "stop_early": 2}]}
    assert "notes" not in preview({**recipe(**fine), "freeze_backbone": {"head": "last"}})


def test_what_methods_and_few_images_leave_without_effect_is_said(recipe: Make) -> None:
    phases = [{"epochs": 6, "stop_early": 2}]
    given = recipe(batch_size=8, accumulate=7, methods=["progressive"], phases=phases)
    notes = preview(given)["notes"].split("; ")
    assert [note.split(":")[0] for note in notes] == [
        "stop_early of phase 'head, 16 px' has no effect",
        "stop_early of phase 'head, 24 px' has no effect",
        "stop_early of phase 'head, 32 px' has no effect",
        "training.accumulate is 7, and a process has 6 images of a step, which it runs in 6 parts",
    ]
    last = preview({**given, "training": {**given["training"], "methods": []}}, devices=3)["notes"]
    assert last.endswith("a process has 2 images of a step, which it runs in 2 parts")


def test_processes_that_cannot_share_a_step_are_refused_before_the_first(recipe: Make) -> None:
    preview(recipe(), devices=6)
    for act in (preview, fit):
        with pytest.raises(DataError, match="18 images in batches of 8 on 7 processes"):
            act(recipe(), devices=7)
    with pytest.raises(DataError, match="on 19 processes"):
        preview(recipe(batch_size="auto"), devices=19)
    given = recipe()
    given["data"] |= {"augment": "none", "cache": True}
    with pytest.raises(TrainingError, match="with the strategy fsdp"):
        preview(given, devices=2, strategy="fsdp")


def test_the_normalization_goes_by_the_images_that_a_step_has(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.setattr(choosing, "default_normalization", lambda _, each: counts.append(each))
    for training in ({"batch_size": 64}, {"batch_size": 16}, {"batch_size": 16, "accumulate": 2}):
        plan = make_plan(as_recipe(recipe(**training), None, Registry()), Registry())
        model = HybridBuilder().build(plan.recipe)
        choosing.choose(plan, model, plan.transforms(model), Devices(accelerator="cpu"))
    assert counts == [18, 9, 4]


def test_the_help_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from tvc_cli.group import tvc;"
        "found = CliRunner().invoke(tvc, ['--help']); assert 'train' in found.output;"
        "heavy = {'torch', 'ray', 'lightning_fabric'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sgd_has_nesterovs_momentum() -> None:
    from tvc_train.optimizers import make_optimizer

    settings = OptimizerSettings(name="sgd", momentum=0.8)
    optimizer = make_optimizer(toy(), settings, rate=0.1, layer_decay=0.5)
    rates = {
        group["name"].partition(",")[0]: group["full_rate"] for group in optimizer.param_groups
    }
    assert rates["head"] == 0.1 and rates["stage 3"] == 0.05 and optimizer.defaults["nesterov"]


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_goes_on_over_a_thaw_as_one_by_hand(momentum: float) -> None:
    settings = OptimizerSettings(name="sgd", momentum=momentum, weight_decay=0.0)
    schedule = PhaseSchedule([Phase(epochs=1), Phase(epochs=1, thaw=(-1,))], 1, optimizer=settings)
    model, optimizer, kept = toy(), None, {}
    for phase in schedule.phases:
        optimizer = schedule.begin(model, phase, optimizer)
        rate = optimizer.param_groups[0]["lr"]
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 32, 32)).square().sum().backward()
            wanted = {}
            for name, each in model.named_parameters():
                if each.grad is not None:
                    kept[name] = momentum * kept.get(name, 0.0) + each.grad
                    wanted[name] = each.detach() - rate * (each.grad + momentum * kept[name])
            optimizer.step()
            thawed = "layer4.0.conv1.weight" in wanted
            assert "fc.weight" in wanted and thawed == (phase is schedule.phases[1])
            for name, value in wanted.items():
                torch.testing.assert_close(model.get_parameter(name).detach(), value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("a bug")]
)
def test_a_batch_for_which_there_is_no_memory_is_not_chosen(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvc_train import choosing

    def speed(model: object, shape: tuple[int, ...], devices: object) -> float:
        if shape[0] > 32:
            raise error
        return float(shape[0])

    monkeypatch.setattr(choosing, "_speed", speed)
    plan: Any = SimpleNamespace(data=SimpleNamespace(train=range(10_000)))
    model, devices = nn.Identity(), SimpleNamespace(world=1)
    if str(error) == "a bug":
        with pytest.raises(RuntimeError, match="a bug"):
            choosing._batch_size(plan, model, (3, 8, 8), devices)  # type: ignore[arg-type]
        return
    assert choosing._batch_size(plan, model, (3, 8, 8), devices) == 32  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "chosen"),
    [((300, 1), "channels_last"), ((1, 300), "contiguous"), ((1, 1), "contiguous")],
)
def test_the_layout_is_the_one_with_which_the_phases_take_less_time(
    recipe: Make, epochs: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvc_train import choosing
    from tvc_train.devices import Devices
    from tvc_train.fitting import as_recipe
    from tvc_train.planning import make_plan

    phases = [{"epochs": epochs[0]}, {"epochs": epochs[1], "thaw": "all"}]
    registry = Registry()
    plan = make_plan(as_recipe(recipe(layout="auto", phases=phases), None, registry), registry)
    model = HybridBuilder().build(plan.recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked = []

    def speed(model: HybridModel, shape: Any, devices: Any, layout: Any, freeze: Any) -> float:
        """Be twice as fast in the new layout where most is frozen, and half as fast where not."""
        freeze()
        frozen = model.count_parameters(trainable_only=True) < 1_000_000
        asked.append((frozen, layout))
        return 1.0 if layout == torch.contiguous_format else 2.0 if frozen else 0.5

    transforms, devices = plan.transforms(model), Devices(accelerator="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(choosing, "_speed", speed)
        found = choosing.choose(plan, model, transforms, devices)
    assert found == {"layout": chosen, "normalization": "train"}
    assert len(asked) == (4 if sum(epochs) > 100 else 0)
    assert choosing.choose(plan, model, transforms, devices)["layout"] in (
        "contiguous",
        "channels_last",
    )
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert model.freeze_state() == HybridBuilder().build(plan.recipe).freeze_state()
