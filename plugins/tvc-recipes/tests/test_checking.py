"""What is wrong with a recipe: all of it, with the hint that helps, without torch."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tvc_recipes import check_recipe, compare
from tvc_recipes.comparing import changed

from tvc_core import (
    HybridBuilder,
    Preprocessing,
    Recipe,
    RecipeDocument,
    RecipeError,
    TvcError,
    freeze_head,
)

HINTS = {
    "backbone: {name: resnet18, weights: None}": "1:37: .*null in YAML, without quotes",
    "backbone: resnet18\nhead: {num_classes: 1e1}": "2:21: .*not 10.0. Write 10:",
    "backbone: resnet18\nhead: {num_classes: '10'}": "2:21: .*Write 10, without quotes",
    "backbone: resnet18\nhead: {num_classes: yes}": "2:21: .*as true and false here[.]$",
    "backbone: resnet18\nname: 2024-01-01": "2:7: .*put it in quotes",
    "backbone: resnet18\nname: on": "2:7: .*text needs quotes",
    "backbone: resnet18\nname: 50": "2:7: .*a number here: text needs quotes",
    "backbone: resnet18\nhead: {dropout: None}": "2:17: .*null in YAML",
    "backbone: resnet18\nhead: None": "2:7: .*null in YAML",
    "backbone: resnet18\nseed: 012": "2:7: YAML reads '012' as another number",
    "backbone: {name: resnet18, patches: {layer1: {wrap: {type: se, params: {reduction: 8.0}}}}}": (
        "1:84: .*reduction is int, not 8.0. Write 8:"
    ),
    "backbone: resnet18\nfreeze_backbone: y": "2:18: .*Write True, without quotes",
    "backbone: resnet18\nfreeze_backbone: {freeze_patches: flase}": "2:35: .*mean 'false'",
    "backbone: resnet18\ngrad_checkpointing: ture": "2:21: .*Did you mean 'true'",
    "backbone: resnet18\nhead:\n  num_classes:3": "2:1: .*space after the colon",
    "backbone: resnet18\nhead: {dropout:0.1, num_classes: 3}": "2:8: .*space after the colon",
    "backbone:resnet18": "1:1: .*space after the colon",
    "backbone:\nname: resnet18": "1:10: .*on the lines below it, indented",
    "backbone: {name: resnet18, in_channels: 2, in_channels_policy: [r, meen]}": (
        "1:64: .*Did you mean 'mean'"
    ),
    "backbone: %resnet18": "1:11: .*text that begins with '%' needs quotes",
    "name: 'a\nbackbone: resnet18": "2:19: .*what is not ended begins on line 1",
    "backbone: resnet18\nhead: {num_classes: 3\nseed: 1": "3:5: .*begins on line 2",
    "backbone: resnet18\ndata: {path: a, source: foldr}": "2:25: .*Did you mean 'folder'",
    "backbone: resnet18\ntraining: {methods: [soup, temprature]}": (
        "2:28: .*Unknown method 'temprature'. Did you mean 'temperature'"
    ),
    "backbone: resnet18\ntraining: {methods: [{l2_ps: {}}]}": "2:23: .*Did you mean 'l2_sp'",
    "backbone: resnet18\ntraining: {batch_size: atuo}": "2:24: .*Did you mean 'auto'",
    "backbone: resnet18\ntraining: {seed: 1.0}": "2:18: .*Write 1: .*is not a whole one",
    "backbone: resnet18\ntraining: {phases: [{epochs: 1e+1}]}": "2:30: .*Write 10: ",
    "backbone: resnet18\ntraining: {phases: [{epochs: 1, thaw: [-1.0]}]}": "2:40: .*Write -1: ",
}


@pytest.mark.parametrize("text", HINTS)
def test_what_yaml_reads_otherwise_has_a_hint(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(AssertionError, match=f"r.yaml:{HINTS[text]}"):
        raise AssertionError(*map(str, check_recipe(path)))


def test_a_wrong_value_is_not_called_missing_as_well(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("backbone: resnet18\ntraining: {phases: [{epochs: 0, rate: -1, thaw: all}]}\n")
    assert [str(error).split(": ")[1] for error in check_recipe(path)] == [
        "training.phases[0].epochs",
        "training.phases[0].rate",
    ]


def test_what_a_search_would_put_into_the_recipe_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    lines = [
        "backbone: resnet18", "training: {phases: [{epochs: 1}]}", "tune:", "  space:",
        "    training.weigth_decay: {loguniform: [0.001, 0.1]}",
        "    trainng.clip: {choice: [1, 2]}",
        "    training.ema: {choice: [0.9, 3, 0.5]}",
        "    training.phases[0].rate: {loguniform: [0.001, 0.1]}",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    said = [str(error).removeprefix(str(path)) for error in check_recipe(path)]
    assert len(said) == 3, said
    assert said[0].startswith(":2:1: training.weigth_decay: unknown key 'weigth_decay'. Did you")
    assert said[1].startswith(":1:1: trainng: unknown key 'trainng' in a recipe. Did you mean 'tra")
    assert said[2].endswith("training.ema: has to be a number above 0 and below 1 or null, not 3.")
    path.write_text("\n".join([*lines[:4], "    training.clip: {uniform: [2, 1]}"]))
    (error,) = check_recipe(path)
    assert str(error).endswith(
        "r.yaml:5:5: tune.space['training.clip']: uniform: 2 is not lower than 1"
    )
    path.write_text("\n".join([*lines[:4], *lines[7:]]))
    assert check_recipe(path) == []


def test_all_errors_come_at_once_also_of_a_file_that_is_extended(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "backbone: {name: resnet18, weights: V9, patches: {layer1: {wrap: sea}}}\nseed: -1\n"
    )
    path = tmp_path / "r.yaml"
    path.write_text("extends: base.yaml\nhed: {}\nhead: {num_classes: x}\n")
    starts = [str(each).split(": ")[0].rpartition("/")[2] for each in check_recipe(path)]
    assert sorted(starts) == [
        "base.yaml:1:37",
        "base.yaml:1:66",
        "base.yaml:2:7",
        "r.yaml:2:1",
        "r.yaml:3:21",
    ]


BUILD = {
    "  patches:\n    layer9: {wrap: se}": "4:5: backbone.patches.layer9: Target not found",
    "  patches:\n    layer1: {wrap: {type: se, params: {reduction: 900}}}": "4:20: backbone",
    "  stages: 9": "3:3: backbone.stages: ",
    "  image_size: 225": "3:3: backbone.image_size: ",
    "  options: {width_per_group: 3}": "3:3: backbone.options: ",
    "  weights: own.pth": "3:3: backbone.weights: ",
    "freeze_backbone: true\nunfreeze_stages: [9]": "4:1: unfreeze_stages: ",
    "grad_checkpointing: [9]": "3:1: grad_checkpointing: ",
    "max_params: 1000": "3:1: max_params: ",
}


@pytest.mark.parametrize("line", BUILD)
def test_what_only_a_build_finds_has_its_place(tmp_path: Path, line: str) -> None:
    name = "vit_b_16" if "image_size" in line else "resnet18"
    path = tmp_path / "r.yaml"
    path.write_text(f"backbone:\n  name: {name}\n{line}\n")
    changes = {} if "weights" in line else {"weights": None}
    with pytest.raises(TvcError) as caught:
        HybridBuilder.build(path, **changes)
    assert str(caught.value).startswith(f"{path}:{BUILD[line]}")


RUN = """
import sys, json
from click.testing import CliRunner
from tvc_recipes import commands
name, *arguments = sys.argv[1:]
result = CliRunner().invoke(getattr(commands, f"{name}_command"), arguments)
print(json.dumps([result.exit_code, result.output, "torch" in sys.modules]))
"""


def run(*arguments: str | Path) -> tuple[int, str, bool]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, output, torch = json.loads(done.stdout)
    return code, output, torch


def test_commands_on_texts_import_no_torch(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(
        "backbone: {name: resnet18, patches: {layer1: {wrap: se}}}\nhead: {num_classes: 3}\n"
    )
    two.write_text(one.read_text().replace("se}", "eca}").replace("3", "4"))
    assert run("validate", one) == (0, f"{one}: fine\n", False)
    assert run("diff", one, one)[::2] == (0, False)
    code, said, torch = run("diff", one, two)
    assert (code, torch) == (1, False)
    assert "head.num_classes: 3 -> 4" in said and "tvc-attention:eca" in said
    assert run("diff", one, "--set", "head.num_classes=4") == (
        1,
        "head.num_classes: 3 -> 4\n",
        False,
    )
    assert run("diff", two, one, "--set", "head.num_classes=4")[1].count("\n") == 1
    assert run("diff", one)[0] == 2
    with pytest.raises(RecipeError, match="--set changes recipes"):
        changed(tmp_path / "model.safetensors", {"head.num_classes": "4"})
    assert run("fmt", "--check", one)[::2] == (0, False)
    two.write_text("head: {num_classes: 4}\nbackbone: resnet18\n")
    assert run("fmt", two) == (0, f"changed {two}\n", False)
    assert run("init", "resnet18")[::2] == (0, False)
    one.write_text(run("init", "resnet18")[1])
    assert run("validate", one)[0] == 0
    code, said, _ = run("validate", one, "--set", "head.num_clases=3")
    assert code == 1 and "Did you mean 'num_classes'" in said


def test_models_are_compared_by_what_is_built(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    head = "backbone: {name: resnet18, weights: null, patches: "
    one.write_text(f"{head}{{'layer[34]': {{inject: {{type: eca, position: before}}}}}}}}")
    inject = "{inject: {type: tvc-attention:eca, position: before}}"
    two.write_text(f"{head}{{layer3: {inject}, layer4: {inject}}}}}\nhead: {{num_classes: 1000}}")
    assert compare(one, two) == []
    two.write_text(two.read_text().replace("before", "after"))
    assert [each.path for each in compare(one, two)] == [
        f"backbone.patches.{layer}[{'tvc-core:inject'!r}].position"
        for layer in ("layer3", "layer4")
    ]


def test_defaults_that_are_spelled_out_are_no_difference() -> None:
    def recipe(type_: str, more: str = "", head: str = "") -> Recipe:
        block = f"{{type: {type_}{more}}}"
        text = f"backbone: {{name: resnet18, patches: {{layer3: {{inject: {block}}}}}}}\n"
        return Recipe.from_document(RecipeDocument.parse(f"{text}head: {{hidden: [8]{head}}}"))

    full = ", position: after, init: identity, params: {reduction: 16}"
    assert compare(recipe("se"), recipe("se", full, ", activation: relu")) == []
    assert compare(recipe("lora"), recipe("lora", ", position: parallel")) == []
    for other in (", init: paper", ", params: {reduction: 8}", ", position: before"):
        assert len(compare(recipe("se"), recipe("se", other))) == 1

    def with_heads(policy: str = "", activation: str = "") -> Recipe:
        heads = f"{{dog: {{num_classes: 3, hidden: [8]{activation}}}, cat: {{num_classes: 2}}}}"
        text = f"backbone: {{name: resnet18, in_channels: 5{policy}}}\nhead: {{heads: {heads}}}"
        return Recipe.from_document(RecipeDocument.parse(text))

    spelled = with_heads(", in_channels_policy: mean", ", activation: relu")
    assert compare(with_heads(), spelled) == []
    assert (
        len(compare(with_heads(", in_channels_policy: repeat", ", activation: gelu"), spelled)) == 2
    )
    assert len(compare(recipe("lora"), recipe("lora", ", init: identity"))) == 1  # has a gate

    def frozen(says: str, dropout: str = "") -> Recipe:
        heads = f"{{dog: {{num_classes: 3, hidden: [8]{dropout}}}}}"
        text = f"backbone: resnet18\nhead: {{heads: {heads}}}\nfreeze_backbone: {says}"
        return Recipe.from_document(RecipeDocument.parse(text))

    full = "{head: all, freeze_patches: false, normalization: frozen}"
    assert compare(frozen("true"), frozen(full, ", dropout: 0")) == []
    last = frozen("{head: last}"), frozen(full.replace("all", "last"))
    assert compare(*last) == []
    assert len(compare(frozen("{head: none}"), frozen(full, ", dropout: 0.1"))) == 2


def test_a_file_is_no_other_model_than_its_recipe(tmp_path: Path) -> None:
    recipe, path = tmp_path / "recipe.yaml", tmp_path / "model.safetensors"
    recipe.write_text(
        "backbone: {name: shufflenet_v2_x0_5, weights: null}\n"
        "head: {heads: {dog: {num_classes: 3, hidden: [8]}, cat: 2}}\n"
        "freeze_backbone: {head: last, freeze_patches: false, normalization: frozen}\n"
    )
    model = HybridBuilder().build(recipe)
    model.save(path)
    assert compare(recipe, path) == []
    model.freeze_backbone(head="none")
    head = HybridBuilder().load(path)
    head.unfreeze_all()
    freeze_head(head)
    assert [each.path for each in compare(model, head)] == ["unfreeze_stages"]


def test_files_and_hybrids_are_compared_as_they_are_now(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(40)]
    model = HybridBuilder().from_backbone("shufflenet_v2_x0_5", weights=None, class_names=names)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    model.save(one)
    assert compare(one, model) == []
    model.class_names = [*names[:-1], "other"]
    model.freeze_backbone(unfreeze_stages=[-1], normalization="eval")
    model.conv1[0].weight.requires_grad_(True)
    model.preprocessing = Preprocessing(size=(64, 64), resize=72)
    model.save(two)
    assert compare(two, model) == []
    found = {each.path: str(each) for each in compare(one, two)}
    assert [*found] == [
        "head.class_names", "freeze_backbone", "unfreeze_stages", "preprocessing", "by_hand"
    ]  # fmt: skip
    assert found["head.class_names"].endswith("'class 38', 'other']")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "backbone: {name: shufflenet_v2_x0_5, weights: null}\nhead: {num_classes: 40}\n"
        "freeze_backbone: {normalization: eval}\nunfreeze_stages: [stage4]\n"
    )
    assert [each.path for each in compare(two, recipe)] == ["head.class_names"]


def test_tensors_of_another_type_are_named(tmp_path: Path) -> None:
    model = HybridBuilder().from_backbone("shufflenet_v2_x0_5", weights=None)
    half = copy.deepcopy(model).half()
    found = {each.path: (each.a, each.b) for each in compare(model, half, weights=True)}
    assert found["fc.bias"] == ("float32 [1000]", "float16 [1000]")
