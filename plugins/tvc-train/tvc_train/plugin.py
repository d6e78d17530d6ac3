"""Defines the kind `method`, and offers methods, the sections `data`, `training` and `tune` of
recipes, and commands. Light: imports neither click nor torch.
"""

from __future__ import annotations

from typing import Any

from tvc_core import Kind, hookimpl

from . import data_schema, kinds, training_schema, tune_schema
from .kinds import MethodSpec

TVC_API = (1, 1)
TVC_OWNER = "tvc-train"
TVC_KINDS = (Kind(spec=MethodSpec, hook=kinds.tvc_train_methods),)

_COMMANDS = {
    "train": "Train the model of a recipe, or of a backbone, on a folder of images.",
    "data": "Look at all data of a recipe before it trains, and list what is wrong.",
    "evaluate": "Evaluate a trained model on data.",
    "predict": "Predict the classes of images, a line for each file.",
    "average": "Average the weights of trained models.",
    "tune": "Search for the values of a recipe that train best.",
}
"""The summary of each, by its name. `NAME_command` is in the file `commands/NAME.py`."""


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer the commands of this plugin."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(name=name, factory=f"tvc_train.commands.{name}:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]


@hookimpl(optionalhook=True)  # works where tvc-recipes is not installed
def tvc_recipes_sections() -> list[Any]:
    """Offer data, training and tune."""
    from tvc_recipes import SectionSpec

    return [
        SectionSpec(
            name="data",
            factory="tvc_train.data:DataSettings.from_mapping",
            schema=data_schema.DATA,
            summary="What a model is trained on, and how its images are prepared.",
        ),
        SectionSpec(
            name="training",
            factory="tvc_train.settings:TrainingSettings.from_mapping",
            schema=training_schema.TRAINING,
            summary="How a model is trained: phases, rates, methods.",
        ),
        SectionSpec(
            name="tune",
            factory="tvc_train.tuning.settings:TuneSettings.from_mapping",
            variants="tvc_train.tuning.settings:examples_of",
            schema=tune_schema.TUNE,
            summary="What tvc tune searches, and how.",
        ),
    ]


_METHODS = {
    "lp_ft": (
        "Train the head alone first, then everything at a tenth of its rate.",
        "Kumar et al. 2022, arXiv:2202.10054",
    ),
    "surgical": (
        "Train only the stages that lie nearest to what has changed in the data.",
        "Lee et al. 2023, arXiv:2210.11466",
    ),
    "l2_sp": (
        "Pull pretrained weights back to where they started.",
        "Li et al. 2018, arXiv:1802.01483",
    ),
    "wise_ft": (
        "Interpolate between the weights at the end of the first phase and at the end.",
        "Wortsman et al. 2022, arXiv:2109.01903",
    ),
    "soup": (
        "Average the weights of the epochs that together do better than each.",
        "Wortsman et al. 2022, arXiv:2203.05482",
    ),
    "progressive": (
        "Begin with small images and end with large ones.",
        "Tan and Le 2021, arXiv:2104.00298",
    ),
    "fixres": (
        "Train the head again at the end, at a larger size of images.",
        "Touvron et al. 2019, arXiv:1906.06423",
    ),
    "temperature": (
        "Scale the logits so that probabilities are calibrated on the held-out images.",
        "Guo et al. 2017, arXiv:1706.04599",
    ),
}


@hookimpl
def tvc_train_methods() -> list[MethodSpec]:
    """Offer the methods of this plugin."""
    classes = {
        "lp_ft": "LinearProbeFirst", "surgical": "Surgical", "l2_sp": "L2StartingPoint",
        "wise_ft": "WiseFineTuning", "soup": "GreedySoup", "progressive": "ProgressiveSizes",
        "fixres": "FixRes", "temperature": "Temperature",
    }  # fmt: skip
    return [
        MethodSpec(
            name=name, factory=f"tvc_train.methods:{classes[name]}", summary=summary, source=source
        )
        for name, (summary, source) in _METHODS.items()
    ]
