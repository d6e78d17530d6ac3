"""`tvc average`: the mean of models that fit together, and why others do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tvc_train.commands.average import average_command
from tvc_train.errors import DataError, TrainingError
from tvc_train.soups import average
from tvc_train.trained import Trained

from tvc_core import HybridBuilder, ParameterError, Preprocessing, Recipe, load

PREPARED = Preprocessing(
    size=(32, 32), resize=32, fit="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)  # fmt: skip


def save(
    path: Path,
    *,
    seed: int = 0,
    prepared: Preprocessing = PREPARED,
    top: dict[str, Any] | None = None,
    **head: Any,
) -> Path:
    """Save a model whose tensors differ from those of another seed.

    Args:
        path: of the file.
        seed: of its weights.
        prepared: its preprocessing.
        top: more keys of its recipe.
        head: those of its head.
    """
    head = {"class_names": ["dark", "light"], **head}
    backbone = {"name": "mobilenet_v3_small", "weights": None}
    recipe = Recipe.from_mapping({"backbone": backbone, "head": head, "seed": seed, **(top or {})})
    model = HybridBuilder().build(recipe)
    about = Trained(preprocessing=prepared, temperature=3.0, figures={"accuracy": 0.9})
    about.save(model, path)
    return path


def with_bias(path: Path, out: Path, bias: tuple[float, float]) -> Path:
    """Save a copy whose bias of the last layer says what it predicts."""
    model = load(path)
    with torch.no_grad():
        last = model.get_classifier()
        last.weight.zero_()
        last.bias.copy_(torch.tensor(bias))
    model.save(out)
    return out


def test_the_average_of_three(tmp_path: Path) -> None:
    trained: list[dict[str, Any]] = [  # how they were trained may differ
        {"description": "the first", "freeze_backbone": True, "unfreeze_stages": [-1]},
        {"freeze_backbone": {"head": "last"}, "max_params": 10_000_000},
        {"grad_checkpointing": True, "requires": ["tvc-core"]},
    ]
    paths = [
        save(tmp_path / f"{seed}.safetensors", seed=seed, top=top)
        for seed, top in enumerate(trained)
    ]
    out = tmp_path / "mean.safetensors"
    soup = average(paths, out)
    assert soup.taken == tuple(paths) and soup.notes
    model, about = Trained.open(out)
    states = [load(path).state_dict() for path in paths]
    for name, tensor in model.state_dict().items():
        wanted = np.mean([state[name].numpy().astype(np.float64) for state in states], axis=0)
        assert np.array_equal(tensor.numpy(), wanted.astype(tensor.numpy().dtype)), name
    # what was measured of the three does not hold for their average
    assert about.temperature == 1.0 and about.figures == {} and about.preprocessing == PREPARED
    assert model.metadata["average_of"] == [path.name for path in paths]


def test_a_greedy_soup_leaves_out_what_makes_it_worse(tmp_path: Path) -> None:
    for name, value, count in (("dark", 20, 3), ("light", 230, 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            picture = np.full((20, 20 + number, 3), value, np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{number}.png")
    base = save(tmp_path / "base.safetensors")
    # three of four images are dark: who says dark is right on 75 %, who says light on 25 %
    bad = with_bias(base, tmp_path / "bad.safetensors", (0.0, 9.0))
    good = with_bias(base, tmp_path / "good.safetensors", (2.0, 0.0))
    fine = with_bias(base, tmp_path / "fine.safetensors", (1.0, 0.0))
    out = tmp_path / "soup.safetensors"
    soup = average([bad, good, fine], out, greedy=True, data=tmp_path / "data")
    assert soup.taken == (good, fine) and soup.left_out == (bad,)
    assert soup.figures["accuracy"] == 0.75
    model, about = Trained.open(out)
    assert model.get_classifier().bias.tolist() == [1.5, 0.0]
    assert about.figures == soup.figures
    # with these logits, the likeliest temperature gives 3 of 4 a probability of 3 / 4
    assert 1.5 / about.temperature == pytest.approx(np.log(3), rel=1e-6)
    assert soup.figures["calibration_error"] == pytest.approx(0, abs=1e-6)
    (tmp_path / "data" / "dark" / "cut.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)cut.png.*--max-bad 1"):
        average([bad, good], out, data=tmp_path / "data")
    soup = average([bad, good], out, data=tmp_path / "data", max_bad=1)
    assert "cut.png" in soup.notes[0]
    (tmp_path / "data" / "dark" / "cut.png").unlink()
    with pytest.raises(TrainingError, match="there are loss, accuracy"):
        average([bad, good], out, greedy=True, data=tmp_path / "data", by="acuracy")
    with pytest.raises(TrainingError, match="by='f1' is what a greedy soup compares by"):
        average([bad, good], out, data=tmp_path / "data", by="f1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_names": ["dark", "bright"]}, "class"),
        ({"class_names": ["dark", "light", "gray"]}, "class"),
        ({"dropout": 0.5}, "head.dropout is 0.5, not"),
        ({"prepared": Preprocessing(**{**vars(PREPARED), "fit": "pad"})}, "preprocessing.fit is"),
    ],
)
def test_others_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.safetensors"), save(tmp_path / "b.safetensors", **change)]
    out = tmp_path / "mean.safetensors"
    with pytest.raises(TrainingError, match=f"b.safetensors .*{said}"):
        average(paths, out)
    assert not out.exists()


def test_another_type_of_a_tensor_is_refused(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors")
    model = load(a).to(torch.bfloat16)
    model.save(tmp_path / "b.safetensors")
    with pytest.raises(TrainingError, match=r"b.safetensors does not fit .*bfloat16"):
        average([a, tmp_path / "b.safetensors"], tmp_path / "c.safetensors")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    a, b = (save(tmp_path / f"{name}.safetensors", seed=len(name)) for name in ("a", "bb"))
    out = tmp_path / "c.safetensors"
    done = CliRunner().invoke(
        average_command, [str(a), str(b), "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0 and f"taken     {a}" in done.stdout
    before = out.read_bytes()
    with pytest.raises(ParameterError, match="--force"):
        CliRunner().invoke(
            average_command, [str(a), str(b), "--out", str(out)], catch_exceptions=False
        )
    assert out.read_bytes() == before
    refused = CliRunner().invoke(average_command, [str(a), str(b), "--out", str(out), "--greedy"])
    assert refused.exit_code == 2 and "--data" in refused.stderr
    with pytest.raises(TrainingError, match=re.escape("two different files")):
        average([a, a], out)
