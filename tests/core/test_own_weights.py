"""A model that starts from a file of the user's own, by code, by recipe and by the command line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import tvc_core
from tvc_core import HeadError, HybridBuilder, RecipeError, WeightsError, load_yaml_recipe

B = HybridBuilder()


def own(folder: Path, name: str = "resnet18", classes: int = 7, file: str = "own.pth") -> Any:
    network = torchvision.models.get_model(name, num_classes=classes)
    torch.save(network.state_dict(), folder / file)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_hybrid_starts_as_the_network_of_the_file(tmp_path: Path, name: str) -> None:
    network = own(tmp_path, name)
    x = torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (tmp_path / "own.pth", str(tmp_path / "own.pth")):
            model = B.from_backbone(name, path, patches={"stage:1": {"wrap": "se"}})
            with torch.no_grad():
                assert torch.equal(model.eval()(x), network(x))
    assert model.num_classes == 7 and model.class_names is None
    assert "weights: own.pth" in model.explain() and model.recipe.weights == "own.pth"
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "own.pth").unlink()
    again = tvc_core.load(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert again.explain() == model.explain()


def test_another_head_is_new_and_the_rest_is_the_file_s(tmp_path: Path) -> None:
    network = own(tmp_path)
    model = B.from_backbone("resnet18", tmp_path / "own.pth", num_classes=3)
    assert model.num_classes == 3
    assert torch.equal(model.layer4[1].conv2.weight, network.layer4[1].conv2.weight)


def test_a_saved_model_gives_its_classes_and_its_preparation(tmp_path: Path) -> None:
    first = B.from_backbone("resnet18", None, num_classes=2, class_names=["cat", "dog"])
    first.save(tmp_path / "pets.safetensors")
    model = B.from_backbone("resnet18", tmp_path / "pets.safetensors", class_names=["dog", "fox"])
    assert model.class_names == ("dog", "fox")
    assert torch.equal(model.fc.weight[0], first.fc.weight[1])  # by the name of the class
    same = B.from_backbone("resnet18", tmp_path / "pets.safetensors")
    assert same.class_names == ("cat", "dog") and torch.equal(same.fc.weight, first.fc.weight)
    patched = B.from_backbone("resnet18", None, num_classes=2, patches={"layer1": {"wrap": "se"}})
    patched.save(tmp_path / "p.safetensors")
    with pytest.warns(UserWarning, match=r"no place.*patches\.layer1"):
        B.from_backbone("resnet18", tmp_path / "p.safetensors")


def test_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    own(tmp_path, "resnet34")
    state = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in state.items() if "layer3.0" not in k}, tmp_path / "part.pth")
    torch.save({k: v for k, v in state.items() if "fc" not in k}, tmp_path / "headless.pth")
    with pytest.raises(WeightsError, match=r"layer3\.0"):
        B.from_backbone("resnet18", tmp_path / "part.pth")
    with pytest.raises(HeadError, match="no head"):
        B.from_backbone("resnet18", tmp_path / "headless.pth")
    model = B.from_backbone("resnet18", tmp_path / "headless.pth", num_classes=4)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    with pytest.raises(WeightsError):
        B.from_backbone("resnet50", tmp_path / "own.pth")
    B.from_backbone("resnet18", None, stages=1, num_classes=2).save(tmp_path / "short.safetensors")
    said = r"short.*: Shape mismatch.*fc.*weights=None, with in_channels, stages.*partial_load"
    with pytest.raises(WeightsError, match=said):
        B.from_backbone("resnet18", tmp_path / "short.safetensors", stages=1)
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        B.from_backbone("resnet18", tmp_path / "absent.pth")


def test_an_entry_of_a_training_checkpoint(tmp_path: Path) -> None:
    one, other = (torchvision.models.squeezenet1_1(num_classes=3).state_dict() for _ in range(2))
    file = tmp_path / "training.pth"
    torch.save({"epoch": 3, "model": one, "state": {"model_ema": other}}, file)
    with pytest.raises(WeightsError, match=r"weights='\S*training\.pth#state\.model_ema' \(52"):
        B.from_backbone("squeezenet1_1", file)
    for entry, state in (("model", one), ("state.model_ema", other)):
        model = B.from_backbone("squeezenet1_1", f"{file}#{entry}")
        assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    with pytest.raises(WeightsError, match=r"has no entry 'modle'.*'model'"):
        B.from_backbone("squeezenet1_1", f"{file}#modle")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("backbone: {name: squeezenet1_1, weights: training.pth#model}\n")
    model = load_yaml_recipe(recipe)
    assert torch.equal(model.features[0].weight, one["features.0.weight"])
    model.save(tmp_path / "m.safetensors")
    assert tvc_core.load(tmp_path / "m.safetensors").num_classes == 3
    recipe.write_text("backbone: {name: squeezenet1_1, weights: ../training.pth#model}\n")
    with pytest.raises(RecipeError, match="outside"):
        load_yaml_recipe(recipe)
    (tmp_path / "link.pth").symlink_to("/etc/passwd")
    recipe.write_text("backbone: {name: squeezenet1_1, weights: 'link.pth#model'}\n")
    with pytest.raises(RecipeError, match="outside"):
        load_yaml_recipe(recipe)


def test_a_name_may_have_the_sign_of_an_entry(tmp_path: Path) -> None:
    network = own(tmp_path, "squeezenet1_1", file="run#7.pth")
    model = B.from_backbone("squeezenet1_1", tmp_path / "run#7.pth")
    assert torch.equal(model.features[0].weight, network.features[0].weight)
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="has no entries"):
        B.from_backbone("squeezenet1_1", f"{tmp_path / 'm.safetensors'}#model")


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_auxiliary_heads_have_the_classes_of_the_file(tmp_path: Path) -> None:
    for aux in (True, False):
        network = torchvision.models.googlenet(num_classes=4, aux_logits=aux, init_weights=False)
        torch.save(network.state_dict(), tmp_path / "own.pth")
        if aux:
            model = B.from_backbone("googlenet", tmp_path / "own.pth")
        else:
            with pytest.warns(
                UserWarning, match=r"no values for 20 tensors of the auxiliary heads"
            ):
                model = B.from_backbone("googlenet", tmp_path / "own.pth")
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        assert {len(out[0]) for out in model.train()(torch.randn(2, 3, 64, 64))} == {4}


def test_a_recipe_reaches_files_under_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "weights").mkdir(parents=True)
    network = own(folder / "weights")
    own(tmp_path, file="outside.pth")
    (folder / "link.pth").symlink_to(tmp_path / "outside.pth")
    recipe = folder / "recipe.yaml"

    def build(weights: object) -> Any:
        recipe.write_text(f"backbone: {{name: resnet18, weights: {weights}}}\n")
        return load_yaml_recipe(recipe)

    assert torch.equal(build("weights/own.pth").fc.weight, network.fc.weight)
    for wrong in (
        tmp_path / "outside.pth",
        "../outside.pth",
        "link.pth",
        "weights/../../outside.pth",
    ):
        with pytest.raises(
            RecipeError, match=r"recipe\.yaml:1:\d+: .*outside of the recipe's folder"
        ):
            build(wrong)
    build("weights/own.pth")
    model = B.build(recipe, weights=tmp_path / "outside.pth", num_classes=2)
    assert model.num_classes == 2 and model.recipe.weights == "outside.pth"
    with pytest.raises(RecipeError, match="pretrained"):
        B.build(recipe, pretrained=True)


def test_an_open_file_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("backbone: {name: resnet18, weights: null}\nodd: 1\n")
    with (tmp_path / "r.yaml").open("rb") as file, pytest.raises(RecipeError, match=r":2:1: odd"):
        B.build(file)


def test_what_is_found_while_building_names_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("backbone: {name: resnet18, weights: null, patches: {nowhere: {wrap: se}}}\n")
    with pytest.raises(tvc_core.TargetError, match=r"r\.yaml:1:53: .*nowhere"):
        load_yaml_recipe(recipe)
    recipe.write_text(
        "backbone: {name: resnet18, weights: null}\nfreeze_backbone: true\nunfreeze_stages: [9]\n"
    )
    with pytest.raises(tvc_core.StageError, match=r"r\.yaml:3:1: unfreeze_stages: "):
        load_yaml_recipe(recipe)
