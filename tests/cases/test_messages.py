"""What users write by mistake, what they are told, and that following the advice works.

A table: for each cause at most three mistakes, each with what the message must say and, where the
advice is something to write, what works then. The networks are tiny, so that it stays fast.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import Tiny
from torch import nn
from tvc_dense import unet

import tvc_core
from tvc_core import HybridBuilder, LocalPlugin

Row = tuple[str, "str | tuple[str, ...]", "str | None"]

PYTHON: dict[str, list[Row]] = {
    # -- the builder -------------------------------------------------------------------------------
    "a name handed to the builder": [
        ('HybridBuilder("resnet18")', "HybridBuilder().from_backbone(name)", None),
        ('HybridBuilder(["tvc-attention"])', "what is installed need not be given", None),
        ('Registry("tvc-attention")', "what is installed need not be given", None),
    ],
    "something else handed to the builder": [
        ("HybridBuilder(plugins=zoo)", "write plugins=[LocalPlugin('acme')]", "HybridBuilder(plugins=[zoo])"),
        ("HybridBuilder(plugins=[Gate(3)])", "plugin = LocalPlugin('my-blocks')", "LocalPlugin('my-blocks')"),
        ("HybridBuilder(plugins=[GATE_SPEC])", "plugin.add(spec)", "LocalPlugin('my-blocks').add(GATE_SPEC)"),
    ],
    "owners": [
        ('HybridBuilder(prefer="tvc-resnt")', "Did you mean 'tvc-resnet'?", 'HybridBuilder(prefer="tvc-resnet")'),
        ('b.list_backbones(owner="tvc-resnt")', "Did you mean 'tvc-resnet'?", 'b.list_backbones(owner="tvc-resnet")'),
    ],
    "filters of lists": [
        ('b.list_backbones(origin="torchvison")', "Did you mean 'torchvision'?", 'b.list_backbones(origin="torchvision")'),
        ('b.list_blocks("attenton")', "Did you mean 'attention'?", 'b.list_blocks("attention")'),
    ],
    "kinds": [
        ('Registry().resolve("blocks", "se")', "Did you mean 'block'?", 'Registry().resolve("block", "se")'),
    ],
    # -- names of networks -------------------------------------------------------------------------
    "misspelt backbones": [
        ('b.from_backbone("resnt18", None)', "Did you mean 'resnet18'", 'b.from_backbone("resnet18", None)'),
        ('b.from_backbone("ResNet-18", None)', "Did you mean 'resnet18'", None),
        ('b.from_torchvision("efficientnet-b0", None)', "Did you mean 'efficientnet_b0'", None),
    ],
    "timm's names": [
        ('b.from_backbone("test_resnet.r160_in1k", None)', "'timm/test_resnet.r160_in1k'", 'b.from_backbone("timm/test_resnet.r160_in1k", None)'),
        ('b.from_backbone("test_vit", None)', "'timm/test_vit'", 'b.from_backbone("timm/test_vit", None)'),
        ('b.from_backbone("timm/test_resnt", None)', "'timm/test_resnet'", None),
    ],
    "names of timm's models in other libraries": [
        ('b.from_backbone("tu-test_resnet", None)', "Did you mean 'timm/test_resnet'?", 'b.from_backbone("timm/test_resnet", None)'),
        ('b.from_backbone("hf_hub:timm/test_vit.r160_in1k", None)', "there is tvc-timm:timm/test_vit.r160_in1k", 'b.from_backbone("tvc-timm:timm/test_vit.r160_in1k", None)'),
        ('b.from_backbone("timm:test_resnet", None)', "Did you mean 'timm/test_resnet'?", None),
    ],
    "addresses in torchvision": [
        ('b.from_backbone("torchvision.models.resnet18", None)', "Did you mean 'resnet18'", None),
        ('b.from_backbone("torchvision/mnasnet0_5", None)', "Did you mean 'mnasnet0_5'", None),
        ('b.from_backbone("pytorch/vision:resnet18", None)', "there is tvc-resnet:resnet18", 'b.from_backbone("tvc-resnet:resnet18", None)'),
    ],
    "models of a hub": [
        ('b.from_backbone("microsoft/resnet-50", None)', ("Did you mean 'resnet50'", "Weights of a hub are not opened by name"), None),
        ('b.from_backbone("google/efficientnet-b0", None)', "Did you mean 'efficientnet_b0'", None),
    ],
    "weights as a name": [
        ('b.from_backbone("ResNet18_Weights.IMAGENET1K_V1")', "from_backbone('resnet18', weights='IMAGENET1K_V1')", None),
        ('b.from_backbone("ResNet18_Weights")', "from_backbone('resnet18', weights='DEFAULT')", None),
    ],
    "detectors": [
        ('b.from_backbone("fasterrcnn_resnet50_fpn")', "not a backbone: build one around a hybrid", None),
        ('b.from_backbone("yolov8n")', "not a backbone: build one around a hybrid", None),
    ],
    "networks in place of names": [
        ("b.from_backbone(network)", "from_module(network, stem=..., stages=..., head=...)", 'b.from_module(Tiny(), stem="stem", stages=["layer1", "layer2"], head="fc")'),
        ("b.from_torchvision(Tiny)", "A network of your own becomes a hybrid", None),
        ("b.from_backbone(torchvision.models.resnet18)", "Give the name, 'resnet18'", 'b.from_backbone("resnet18", None)'),
    ],
    "files in place of names": [
        ('b.from_backbone("model.safetensors")', "tvc_core.load('model.safetensors')", 'tvc_core.load("model.safetensors", registry=b.registry)'),
        ('b.from_backbone("recipe.yaml")', "HybridBuilder().build('recipe.yaml')", 'b.build("recipe.yaml")'),
        ('b.from_backbone("state.pth")', "tvc_core.partial_load(model, 'state.pth')", "tvc_core.partial_load(tiny(), 'state.pth')"),
    ],
    "a block where a backbone belongs, and the other way": [
        ('b.from_backbone("se")', "There is the block 'se'", None),
        ('b.create_block("resnet18", 8)', "There is the backbone 'resnet18'", None),
        ('b.create_block("wrap", 8)', "There is the patch op 'wrap'", None),
    ],
    "another library's network from from_torchvision": [
        ('b.from_torchvision("tiny", None)', "build it with from_backbone('tiny', ...)", 'b.from_backbone("tiny", None)'),
    ],
    "plugins made elsewhere": [
        ('b.from_backbone("notebook:net", None)', "If it was made in code: HybridBuilder(plugins=[plugin])", None),
        ('b.create_block("acm:gate", 8)', "there is acme:gate", 'b.create_block("acme:gate", 8)'),
    ],
    "several plugins that are not there": [
        (
            "b.build({'backbone': {'name': 'one:net', 'patches': {'a': {'wrap': 'two:gate'}}}})",
            ("2 plugins are not installed: one", "pip install one two"),
            None,
        ),
    ],
    # -- weights -----------------------------------------------------------------------------------
    "no weights": [
        ('b.from_backbone("tiny", "none")', "For random weights write None", 'b.from_backbone("tiny", None)'),
        ('b.from_backbone("resnet18", "random")', "For random weights write None", None),
        ('b.from_backbone("resnet18", False)', "For random weights write None", None),
    ],
    "the usual weights": [
        ('b.from_backbone("resnet18", True)', "write 'DEFAULT'", None),
        ('b.from_backbone("resnet18", "imagenet")', "write 'DEFAULT'", None),
        ('b.from_backbone("resnet18", torchvision.models.ResNet18_Weights)', "ResNet18_Weights.DEFAULT", None),
    ],
    "misspelt weights": [
        ('b.from_backbone("resnet18", "IMAGENET1K")', "Did you mean 'IMAGENET1K_V1'?", None),
        ('b.from_backbone("tiny")', "has no pretrained weights: pass weights=None", 'b.from_backbone("tiny", weights=None)'),
    ],
    "files as weights": [
        ('b.from_backbone("tiny", "state.pt")', "state.pt: cannot be read", 'b.from_backbone("tiny", "state.pth")'),
        ('b.from_backbone("tiny", network.state_dict())', "partial_load(model, state_dict)", "partial_load(tiny(), network.state_dict())"),
    ],
    # -- arguments ---------------------------------------------------------------------------------
    "arguments of torchvision and timm": [
        ("tiny(pretrained=True)", "weights='DEFAULT'", None),
        ("tiny(in_chans=1)", "in_channels", "tiny(in_channels=1)"),
        ("tiny(drop_rate=0.5)", "dropout", "tiny(dropout=0.5)"),
    ],
    "arguments that are methods here": [
        ("tiny(features_only=True)", "model.get_stage_outputs(images)", "tiny().get_stage_outputs(images)"),
        ('tiny(device="cpu")', "model.to(device)", 'tiny().to("cpu")'),
        ("tiny(dtype=torch.float64)", "model.to(dtype)", "tiny().to(torch.float64)"),
    ],
    "misspelt arguments": [
        ("tiny(num_class=3)", "Did you mean 'num_classes'?", "tiny(num_classes=3)"),
        ("tiny(patch={})", "Did you mean 'patches'?", "tiny(patches={})"),
        ("tiny(freez_backbone=True)", "Did you mean 'freeze_backbone'?", "tiny(freeze_backbone=True)"),
    ],
    "options of the network's own builder": [
        ("tiny(options={'widht': 8})", "Did you mean 'width'?", "tiny(options={'width': 8})"),
        ("tiny(image_size=32)", "takes images of any size from 32 pixels", "tiny()"),
    ],
    "numbers as text": [
        ('tiny(num_classes="3")', "Write 3, without quotes", "tiny(num_classes=3)"),
        ('tiny(in_channels="4")', "Write 4, without quotes", "tiny(in_channels=4)"),
        ('tiny(dropout="0.5")', "Write 0.5, without quotes", "tiny(dropout=0.5)"),
    ],
    "numbers out of range": [
        ("tiny(num_classes=-1)", "from 0 (no classifier)", "tiny(num_classes=0)"),
        ("tiny(dropout=50)", "from 0 to below 1", "tiny(dropout=0.5)"),
        ("tiny(in_channels=0)", "from 1 to", "tiny(in_channels=1)"),
    ],
    "true and false": [
        ('tiny(freeze_backbone="true")', "Write True, without quotes", "tiny(freeze_backbone=True)"),
        ('tiny(freeze_backbone="none")', "For nothing write None in Python and null in YAML", None),
        ("tiny(freeze_backbone={'head': 'fc'})", "all, last, none", "tiny(freeze_backbone={'head': 'last'})"),
    ],
    "what to freeze": [
        ("tiny(unfreeze_stages=[1])", "set freeze_backbone=True", "tiny(unfreeze_stages=[1], freeze_backbone=True)"),
        ("tiny(freeze_backbone=True, unfreeze_stages=[2])", "the 2 stages are 0: layer1, 1: layer2", "tiny(freeze_backbone=True, unfreeze_stages=[1])"),
        ("tiny(freeze_backbone={'heads': 'last'})", "Did you mean 'head'?", "tiny(freeze_backbone={'head': 'last'})"),
    ],
    "input channels": [
        ("tiny(in_channels_policy='mean')", "without in_channels", "tiny(in_channels_policy='mean', in_channels=4)"),
        ("tiny(in_channels=4, in_channels_policy=['r', 'g', 'b'])", "3 rules for in_channels 4", "tiny(in_channels=4, in_channels_policy=['r', 'g', 'b', 'mean'])"),
    ],
    "names of classes, how many": [
        ('tiny(class_names=["a", "b"], num_classes=3)', "num_classes=2 gives it", None),
        ('tiny(class_names=["a", "a"], num_classes=2)', "'a' is there twice", None),
    ],
    "names of classes, how written": [
        ('tiny(class_names="cat, dog", num_classes=2)', "Write a list: ['cat', 'dog']", "tiny(class_names=['cat', 'dog'], num_classes=2)"),
        ("tiny(class_names={'a': 0, 'b': 1}, num_classes=2)", "list(class_to_idx)", "tiny(class_names=list({'a': 0, 'b': 1}), num_classes=2)"),
        ("tiny(class_names=[1, 2], num_classes=2)", "names in quotes: ['1', '2']", "tiny(class_names=['1', '2'], num_classes=2)"),
    ],
    # -- patches -----------------------------------------------------------------------------------
    "patches in another form": [
        ('tiny(patches="se")', "{'layer3': {'wrap': 'se'}}", None),
        ('tiny(patches={"layer2": "se"})', "such as {'wrap': 'se'}", 'tiny(patches={"layer2": {"wrap": "se"}})'),
        ('tiny(patches=[("layer2", "wrap", "se")])', "{'layer3': {'wrap': 'se'}}", None),
    ],
    "target and operation": [
        ('tiny(patches={"wrap": {"layer2": "se"}})', "write {'layer2': {'wrap': 'se'}}", "tiny(patches={'layer2': {'wrap': 'se'}})"),
        ('tiny(patches={"": {"wrap": "se"}})', ("arguments, [''].wrap", "such as 'layer3'"), None),
        ("tiny(patches={nn.ReLU: {'wrap': 'se'}})", "the path of a module, such as 'layer3'", None),
    ],
    "no operation": [
        ('tiny(patches={"layer2": {"se": {}}})', ("There is the block 'se'", "{'wrap': 'se'}"), None),
        ('tiny(patches={"layer2": {"op": "wrap", "block": "se"}})', "such as {'wrap': 'se'}", None),
        ('tiny(patches={"layer2": {"type": "se"}})', "such as {'wrap': 'se'}", None),
    ],
    "types of modules": [
        ('tiny(patches={"type:nn.ReLU": {"wrap": "se"}})', "'type:ReLU'", 'tiny(patches={"type:ReLU": {"wrap": "se"}})'),
        ('tiny(patches={"layer2.type:torch.nn.ReLU": {"wrap": "se"}})', "'type:ReLU'", None),
    ],
    "positions as operations": [
        ('tiny(patches={"layer2": {"before": "se"}})', "{'inject': {'type': 'se', 'position': 'before'}}", "tiny(patches={'layer2': {'inject': {'type': 'se', 'position': 'before'}}})"),
        ('tiny(patches={"layer2": {"parallel": "se"}})', "'position': 'parallel'", None),
        ('tiny(patches={"layer2": {"wrap": "se", "position": "after"}})', "stands beside the block", None),
    ],
    "positions that another operation has": [
        ('tiny(patches={"layer2": {"wrap": {"type": "se", "position": "before"}}})', "{'inject': {'type': ..., 'position': 'before'}}", "tiny(patches={'layer2': {'inject': {'type': 'se', 'position': 'before'}}})"),
        ('tiny(patches={"layer2": {"replace": {"type": "se", "position": "after"}}})', "Of inject, wrap it is an option", "tiny(patches={'layer2': {'inject': {'type': 'se', 'position': 'after'}}})"),
        ('tiny(patches={"layer2": {"inject": {"type": "se", "position": "befor"}}})', "Did you mean 'before'?", "tiny(patches={'layer2': {'inject': {'type': 'se', 'position': 'before'}}})"),
    ],
    "misspelt operations": [
        ('tiny(patches={"layer2": {"warp": "se"}})', "Did you mean 'wrap'", "tiny(patches={'layer2': {'wrap': 'se'}})"),
        ('tiny(patches={"layer2": {"insert": "se"}})', "Did you mean 'inject'", "tiny(patches={'layer2': {'inject': 'se'}})"),
    ],
    "misspelt blocks": [
        ('tiny(patches={"layer2": {"wrap": "SE"}})', "Did you mean 'se'?", "tiny(patches={'layer2': {'wrap': 'se'}})"),
        ('tiny(patches={"layer2": {"wrap": "cbam"}})', "Did you mean 'cbam_block'?", "tiny(patches={'layer2': {'wrap': 'cbam_block'}})"),
        ('tiny(patches={"layer2": {"wrap": "se(reduction=8)"}})', "{'type': 'se', 'params': {...}}", "tiny(patches={'layer2': {'wrap': {'type': 'se', 'params': {'reduction': 8}}}})"),
    ],
    "parameters one level too high": [
        ('tiny(patches={"layer2": {"wrap": {"type": "se", "reduction": 8}}})', "write {'wrap': {'type': 'se', 'params': {'reduction': 8}}}", "tiny(patches={'layer2': {'wrap': {'type': 'se', 'params': {'reduction': 8}}}})"),
        ('tiny(patches={"layer2": {"wrap": "se", "reduction": 8}})', "{'type': 'se', 'params': {'reduction': 8}}", None),
        ('tiny(patches={"layer2": {"wrap": {"se": {"reduction": 8}}}})', "write {'wrap': {'type': 'se', 'params': {'reduction': 8}}}", None),
    ],
    "the block of a patch": [
        ('tiny(patches={"layer2": {"wrap": {"block": "se"}}})', "{'wrap': {'type': 'se'}}", "tiny(patches={'layer2': {'wrap': {'type': 'se'}}})"),
        ('tiny(patches={"layer2": {"wrap": {"name": "se"}}})', "the block is the type: {'type': 'se'}", None),
        ('tiny(patches={"layer2": {"wrap": ["se", "eca"]}})', "[{'wrap': 'se'}, {'wrap': 'eca'}]", "tiny(patches={'layer2': [{'wrap': 'se'}, {'wrap': 'eca'}]})"),
    ],
    "parameters of a block": [
        ('b.create_block("se", 8, reductoin=2)', "Did you mean 'reduction'?", 'b.create_block("se", 8, reduction=2)'),
        ('b.create_block("se", 8, reduction=80)', "from 1 to in_channels (8)", 'b.create_block("se", 8, reduction=8)'),
        ('b.create_block("se", "8")', "in_channels is a whole number of at least 1", 'b.create_block("se", 8)'),
    ],
    "initializers": [
        ('tiny(patches={"layer2": {"wrap": {"type": "eca", "init": "zeros"}}})', "Did you mean 'zero'", "tiny(patches={'layer2': {'wrap': {'type': 'eca', 'init': 'zero'}}})"),
        ('partial_load(tiny(), "state.pth", init_new_layers="kaming")', "Did you mean 'kaiming'", 'partial_load(tiny(), "state.pth", init_new_layers="kaiming")'),
    ],
    "paths": [
        ('tiny(patches={"layer5": {"wrap": "se"}})', "Near paths: layer", "tiny(patches={'layer2': {'wrap': 'se'}})"),
        ('tiny(patches={"stage:2": {"wrap": "se"}})', "the 2 stages are 0: layer1, 1: layer2", "tiny(patches={'stage:1': {'wrap': 'se'}})"),
        ('tiny(patches={"type:relu": {"replace": "identity"}})', "Did you mean 'ReLU'?", None),
    ],
    # -- the written form --------------------------------------------------------------------------
    "nothing in YAML": [
        ("yaml('backbone: {name: tiny, weights: none}')", ("y.yaml:1:33", "null in YAML, without quotes"), "yaml('backbone: {name: tiny, weights: null}')"),
        ("yaml('backbone: {name: tiny, weights: None}')", "null in YAML, without quotes", None),
        ("yaml('backbone: {name: tiny, weights: null}\\nhead: {dropout: None}')", "null in YAML, without quotes", "yaml('backbone: {name: tiny, weights: null}\\nhead: {dropout: null}')"),
    ],
    "false in YAML": [
        ("yaml('backbone: {name: tiny, weights: no}')", "null in YAML, without quotes", None),
        ("yaml('backbone: {name: tiny, weights: \"false\"}')", "null in YAML, without quotes", None),
    ],
    "class names in YAML": [
        ("yaml('backbone: {name: tiny, weights: null}\\nhead: {num_classes: 2, class_names: [yes, no]}')", "put quotes", "yaml('backbone: {name: tiny, weights: null}\\nhead: {num_classes: 2, class_names: [\"yes\", \"no\"]}')"),
        ("yaml('backbone: {name: tiny, weights: null}\\nhead: {num_classes: 3, class_names: [se, dk, no]}')", "YAML reads yes, no, on, off", None),
        ("yaml('backbone: {name: tiny, weights: null}\\nhead: {num_classes: 2, class_names: [2024-01-01, b]}')", "put it in quotes", None),
    ],
    "keys in the wrong section": [
        ("yaml('backbone: {name: tiny, weights: null}\\nnum_classes: 3')", "It belongs under 'head'", "yaml('backbone: {name: tiny, weights: null}\\nhead: {num_classes: 3}')"),
        ("yaml('backbone: tiny\\nweights: null')", "It belongs under 'backbone'", "yaml('backbone: {name: tiny, weights: null}')"),
        ("yaml('backbone: {name: tiny, weights: null, freeze_backbone: true}')", "It belongs at the top", "yaml('backbone: {name: tiny, weights: null}\\nfreeze_backbone: true')"),
    ],
    "misspelt keys": [
        ("yaml('backbone: {nam: tiny, weights: null}')", "Did you mean 'name'?", "yaml('backbone: {name: tiny, weights: null}')"),
        ("yaml('backbon: {name: tiny}')", "Did you mean 'backbone'", None),
        ("yaml('backbone: {name: tiny, pretrained: true}')", "in YAML null", None),
    ],
    "no recipe": [
        ("yaml('')", "the recipe is empty", None),
        ("yaml('name: tiny')", "a recipe needs at least 'backbone:", None),
        ("yaml('tiny')", "a recipe is a mapping with the keys", None),
    ],
    "no YAML": [
        ("yaml('backbone:\\n\\tname: tiny')", "indent by spaces, not by tabs", "yaml('backbone:\\n  name: tiny\\n  weights: null')"),
        ("yaml('backbone: {name: tiny, patches: {*.bn1: {wrap: se}}}')", "needs quotes", None),
        ("yaml('backbone: {name: tiny')", "expected ',' or '}'", None),
    ],
    # -- files -------------------------------------------------------------------------------------
    "other files in place of recipes": [
        ('b.build("state.pth")', "tvc_core.partial_load(model, 'state.pth')", "partial_load(tiny(), 'state.pth')"),
        ('b.build("model.safetensors")', "tvc_core.load('model.safetensors')", None),
        ('tvc_core.load_yaml_recipe("tensors.safetensors")', "It holds tensors and no recipe", None),
    ],
    "other things in place of recipes": [
        ("b.build(network)", "from_module(network", None),
        ('b.build("resnet18")', 'HybridBuilder().from_backbone("resnet18")', None),
        ('b.build("recip.yaml")', "Did you mean 'recipe.yaml'", 'b.build("recipe.yaml")'),
    ],
    "other files in place of models": [
        ('tvc_core.load("state.pth")', "It is a file of torch.save", "partial_load(tiny(), 'state.pth')"),
        ('b.load("recipe.yaml")', "HybridBuilder().build('recipe.yaml')", 'b.build("recipe.yaml")'),
        ('b.load("tensors.safetensors")', "partial_load(model, 'tensors.safetensors')", "partial_load(tiny(), 'tensors.safetensors')"),
    ],
    "other things in place of models": [
        ("tvc_core.load(network.state_dict())", "A state dict goes into a model by partial_load", None),
        ('b.load("modl.safetensors")', "Did you mean 'model.safetensors'", 'b.load("model.safetensors")'),
        ('b.load("empty.safetensors")', "or damaged", None),
    ],
    "a saved model without its plugin": [
        ('tvc_core.load("model.safetensors")', "HybridBuilder(plugins=[plugin])", 'HybridBuilder(plugins=[zoo]).load("model.safetensors")'),
    ],
    "files that are no weights": [
        ('partial_load(tiny(), "whole.pt")', ("an object of case_tools.Tiny", "torch.save(network.state_dict(), path)"), None),
        ('partial_load(tiny(), "cut.pth")', "truncated or damaged. Copy or download it again", None),
        ('partial_load(tiny(), "recipe.yaml")', "It is a recipe", 'b.build("recipe.yaml")'),
    ],
    "checkpoints": [
        ('partial_load(tiny(), "checkpoint.pt")', "checkpoint['model']", 'partial_load(tiny(), torch.load("checkpoint.pt")["model"])'),
        ("partial_load(tiny(), network)", "Pass its state_dict()", "partial_load(tiny(), network.state_dict())"),
        ('partial_load(tiny(num_classes=3), "state.pth")', "ignore_mismatch=True", 'partial_load(tiny(num_classes=3), "state.pth", ignore_mismatch=True)'),
    ],
    "true and false in calls": [
        ('partial_load(tiny(num_classes=3), "state.pth", ignore_mismatch=["fc"])', "exclude_patterns leaves out tensors by name", 'partial_load(tiny(num_classes=3), "state.pth", exclude_patterns=["fc"])'),
        ('tiny().transforms(train="false")', "train is True or False", None),
        ('tiny().set_grad_checkpointing("off")', "enable is True or False", None),
    ],
    "names of saved files": [
        ('tiny().save("model.pt")', "'model.safetensors'", None),
        ('tiny().save("nowhere/m.safetensors")', "cannot be written", None),
    ],
    # -- a model -----------------------------------------------------------------------------------
    "stages and modules of a model": [
        ("tiny().get_stage_outputs(images, [7])", "the 2 stages are 0: layer1, 1: layer2", "tiny().get_stage_outputs(images, [1])"),
        ('tiny().feature_extractor("layer9")', "model.named_modules() lists all", 'tiny().feature_extractor("layer2")'),
        ('tiny().unpatch("layer2")', "nothing is patched at 'layer2'. Patched are: none", None),
    ],
    "methods of a model": [
        ('tiny().reset_classifier("3")', "Write 3, without quotes", "tiny().reset_classifier(3)"),
        ('tiny().freeze_backbone(head="fc")', "all, last, none", 'tiny().freeze_backbone(head="last")'),
        ("HybridModel()", "HybridBuilder()", None),
    ],
    "stages by the end of their path": [
        ('tiny().get_stage_outputs(images, "layer")', "Did you mean 'layer", 'tiny().get_stage_outputs(images, "layer2")'),
        ('tiny(freeze_backbone=True, unfreeze_stages=["fc"])', "there is no stage 'fc'", None),
        ("tiny(stages=0)", "from 1 to 2", "tiny(stages=1)"),
    ],
    "places of other patches": [
        ('tiny(patches={"layer1": {"wrap": "se"}}).unpatch("layer2")', "Patched are: layer1", 'tiny(patches={"layer1": {"wrap": "se"}}).unpatch("layer1")'),
        ('tiny(patches={"fc": {"replace": "identity"}})', "built by num_classes=0", "tiny(num_classes=0)"),
        ('tiny(patches={"layer1": {"inject": {"type": "conv_bn_act", "params": {"channels": 7}}}})', "would fit", None),
    ],
    "checkpoints of other networks": [
        ('partial_load(tiny(num_classes=3), {"fc.weight": torch.zeros(9, 9), "body.0.weight": torch.zeros(3)})', "nothing would be loaded", None),
        ("partial_load(tiny(), torchvision.models.alexnet().state_dict())", "first keys are features.0.weight", None),
    ],
    "heads in another form": [
        ('tiny(heads=["cat", "age"])', "a mapping of names to classes", 'tiny(heads={"cat": 3, "age": 1})'),
        ('tiny(heads={"cat": 3}, num_classes=4)', "leave num_classes and class_names out", 'tiny(heads={"cat": 3})'),
        ('tiny(num_classes=3, hidden="64")', "Write 64, without quotes", "tiny(num_classes=3, hidden=64)"),
    ],
    "names of activations": [
        ('tiny(num_classes=3, hidden=[8], activation="swish")', "Did you mean 'hardswish'", 'tiny(num_classes=3, hidden=[8], activation="hardswish")'),
        ('tiny(num_classes=3, hidden=[8], activation="ReLU")', "Did you mean 'relu'", 'tiny(num_classes=3, hidden=[8], activation="relu")'),
        ('tiny(patches={"act": {"replace": "swish"}})', "Unknown block 'swish'", None),
    ],
    "sizes of images": [
        ('b.from_backbone("vit_b_32", None, image_size=100)', "96 and 128 do", None),
        ('b.from_backbone("vit_b_32", None, image_size=[96, 128])', "takes square images", None),
        ('b.from_backbone("timm/test_vit", None, image_size=100)', "96x96 and 112x112 do", 'b.from_backbone("timm/test_vit", None, image_size=96)'),
    ],
    "decoders": [
        ("unet(tiny(), 3, decoder_channels=64)", "a list of one number for each step", "unet(tiny(), 3, decoder_channels=[16] * len(unet(tiny(), 3).decoder))"),
        ("unet(tiny(), 3, decoder_channels=[64])", "one number for each step", None),
        ('unet("tiny", 3)', "unet takes a model that HybridBuilder made", "unet(tiny(), 3)"),
    ],
    "owners that are origins": [
        ('b.list_backbones(owner="torchvision")', "list_backbones(origin='torchvision')", "b.list_backbones(origin='torchvision')"),
        ('b.list_backbones(owner="timm")', "list_backbones(origin='timm')", None),
    ],
    "nothing after a family": [
        ('b.from_backbone("timm/", None)', "follows 'timm/'", None),
    ],
    "networks handed over": [
        ("b.from_torchvision(torchvision.models.mnasnet0_5)", "Give the name, 'mnasnet0_5'", None),
        ("b.from_torchvision(torchvision.models.squeezenet1_1())", "from_module(network", None),
        ('b.from_torchvision("fcn_resnet50")', "build one around a hybrid", None),
    ],
    "a network of one's own": [
        ('b.from_module("resnet18", stem="a", stages=["b"], head="c")', "an nn.Module, not 'resnet18'", None),
        ('b.from_module(Tiny(), stem="stem", stages=["layer1"], head="fc")', "together lack layer2", 'b.from_module(Tiny(), stem="stem", stages=["layer1", "layer2"], head="fc")'),
        ('b.from_module(tiny(), stem="stem", stages=["layer1", "layer2"], head="fc")', "a hybrid already", None),
    ],
    # -- plugins -----------------------------------------------------------------------------------
    "misspelt fields": [
        ('BlockSpec(name="x", factory="a:b", catgory="attention")', "Did you mean 'category'?", 'BlockSpec(name="x", factory="a:b", category="attention")'),
        ('WeightsSpec(name="X", crop=224)', "Did you mean 'crop_size'?", 'WeightsSpec(name="X", crop_size=224)'),
        ('zoo.block(gatd=True)(Gate)', "Did you mean 'gated'?", None),
    ],
    "values of fields": [
        ('BackboneSpec(name="x", factory="a:b", stem="conv1", stages=("a",), head="fc")', "write ('conv1',)", 'BackboneSpec(name="x", factory="a:b", stem=("conv1",), stages=("a",), head="fc")'),
        ('BlockSpec(name="My-Block", factory="a:b")', "lower-case letters, digits and '_'", 'BlockSpec(name="my_block", factory="a:b")'),
        ('BlockSpec("x", "a:b")', "takes its fields by name", 'BlockSpec(name="x", factory="a:b")'),
    ],
    "torch's classes as blocks": [
        ("LocalPlugin('mine').block(nn.GroupNorm)", ("num_groups", "def block(in_channels): return GroupNorm(...)"), "LocalPlugin('mine').block(group_norm)"),
        ("LocalPlugin('mine').block(nn.ReLU)", "here that is inplace", None),
    ],
    "other things as blocks": [
        ("LocalPlugin('mine').block(nn.Identity())", "a decorator goes above a class or function", "LocalPlugin('mine').block(nn.Identity)"),
        ("LocalPlugin('mine').block('se')", "a decorator goes above a class or function", None),
        ("LocalPlugin('my plugin')", "letters, digits and '-'", "LocalPlugin('my-plugin')"),
    ],
}  # fmt: skip
# ruff: noqa: E501  a row is a line

WITHOUT_PARENTHESES = [
    'HybridBuilder.from_backbone("resnet18", None)',
    'HybridBuilder.from_module(Tiny(), stem="stem", stages=["layer1", "layer2"], head="fc")',
    'HybridBuilder.build("resnet.yaml")',
    'HybridBuilder.create_block("se", 8)',
]
"""What fails in other libraries and works here, as the lists do."""

Command = tuple[str, "str | tuple[str, ...]", "str | None"]

SHELL: dict[str, list[Command]] = {
    "lists of what there is not": [
        ("list networks", "Did you mean 'backbones'?", "list backbones"),
        ("list attention", "'tvc list blocks --category attention'", "list blocks --category attention"),
        ("list resnet50", "'tvc show resnet50'", None),
    ],
    "misspelt words of a list": [
        ("list bloks", "Did you mean 'blocks'?", "list blocks"),
        ("list plugins", "'tvc plugins'", "plugins"),
        ("list initialisers", "Did you mean 'initializers'?", "list initializers"),
    ],
    "options of a list": [
        ("list --category attention", "tvc list blocks --category attention", "list blocks --category attention"),
        ("list --owner tvc-resnt", "Did you mean 'tvc-resnet'?", "list --owner tvc-resnet"),
        ("list ops --origin torchvision", "tvc list backbones --origin torchvision", "list backbones --origin torchvision"),
    ],
    "names to show": [
        ("show resnt18", ("Did you mean 'resnet18'", "'tvc list' lists them"), "show se"),
        ("show SE", ("Did you mean 'se'", "'tvc list blocks' lists them"), "show se"),
        ("show wrapp", ("Did you mean 'wrap'", "'tvc list ops' lists them"), "show wrap"),
    ],
    "other things to show": [
        ("show tvc-attention", "'tvc list blocks --owner tvc-attention'", "list blocks --owner tvc-attention"),
        ("show blocks", "'tvc list blocks'", "list blocks"),
        ("show qqqqqq", "'tvc list kinds'", "list kinds"),
    ],
    "options of show": [
        ("show se --size 32", "are for backbones; 'se' is a block", "show se"),
        ("show se --kind blok", "Did you mean 'blocks'?", "show se --kind blocks"),
        ("show se --kind backbones", "There is the block 'se'", None),
    ],
    "timm's names in the shell": [
        ("show test_resnet.r160_in1k", "'timm/test_resnet.r160_in1k'", None),
        ("show timm/test_resnt", ("'timm/test_resnet'", "tvc list 'timm/*' lists them"), None),
    ],
    "recipes with mistakes": [
        ("build none.yaml", ("none.yaml:1:37", "null in YAML"), None),
        ("build misspelt.yaml", ("misspelt.yaml:1:53", "'tvc list blocks' lists them"), None),
        ("build missing.yaml", ("2 plugins are not installed", "pip install one two"), None),
    ],
    "files to build": [
        ("build model.safetensors", "in Python, tvc_core.load('model.safetensors')", None),
        ("build state.pth", "in Python, build the model", None),
        ("build resnt.yaml", "Did you mean 'resnet.yaml'", "build resnet.yaml"),
    ],
    "other things to build": [
        ("build resnet18", "the shortest is 'backbone: resnet18'", None),
        ("build .", "In it: ", None),
    ],
    "where to build to": [
        ("build resnet.yaml --out model.pt", "does not end in .safetensors", None),
        ("build resnet.yaml --out nowhere/m.safetensors", "the folder 'nowhere' does not exist", None),
        ("build resnet.yaml --out model.safetensors", "--force", None),
    ],
    "commands": [
        ("lst", "Did you mean 'list'?", "list"),
        ("new_plugn", "Did you mean 'new-plugin'", None),
        ("deploy recipe.yaml", "'tvc --help' tells of each", "--help"),
    ],
    "plugins to check": [
        ("check tvc-attentoin", "Did you mean 'tvc-attention'", None),
        ("check ./folder", "The folder has no pyproject.toml", None),
        ("check nowhere/", "Give the folder that has its pyproject.toml", None),
    ],
    "values of a recipe as options": [
        ("build resnet.yaml --num-classes 3", "changed by --set PATH=VALUE", "build resnet.yaml --set head.num_classes=3"),
        ("train resnet.yaml --epochs 3", "changed by --set PATH=VALUE", None),
    ],
    "one argument too many": [
        ("show resnet18 layer4", "--target 'layer4.*'", "show resnet18 --target 'layer4.*'"),
        ("doctor tvc-attention", "'tvc check NAME' at one", None),
        ("build resnet.yaml resnet.yaml", "It builds one recipe", "build resnet.yaml"),
    ],
    "owners that are origins": [
        ("list --owner torchvision", "'tvc list --origin torchvision'", "list --origin torchvision"),
        ("list backbones --owner timm", "'tvc list --origin timm'", None),
    ],
    "nothing after a family": [
        ("show timm/", ("follows 'timm/'", "tvc list 'timm/*' lists them"), None),
    ],
    "values of options": [
        ("list --sort accuracy", "'acc'", "list --sort acc"),
        ("list blocks --category attn", "Did you mean 'attention'?", "list blocks --category attention"),
        ("new-plugin acme --kind blocks", "'block'", None),
    ],
    "new plugins": [
        ("new-plugin Acme_Blocks", "Did you mean 'acme-blocks'?", "new-plugin acme-blocks --into folder"),
        ("new-plugin acme --name TripletGate", "Did you mean 'triplet_gate'?", "new-plugin acme-two --name triplet_gate --into folder"),
        ("new-plugin tvc-attention", "is a distribution of the tvc project", None),
    ],
}  # fmt: skip

EMPTY: dict[str, tuple[str, str | None]] = {
    "list 'resnt*'": ("Did you mean 'resnet", None),
    "list 'RESNET*'": ("Did you mean 'resnet*'?", "list 'resnet*'"),
    "list timm/": ("'timm/*'", None),
    "list 'tim/*'": ("The families are timm", "list families"),
    "list blocks attention": ("'*attention*'", "list blocks '*attention*'"),
    "list ops 'wrp*'": ("Did you mean 'wrap'?", "list ops 'wrap'"),
}
"""Patterns that match nothing: no error, and a hint."""

LISTED = {"list 'resnet*'": "resnet18", "list block": "se", "list op": "wrap", "list kind": "block"}
"""What is understood, though it is written another way."""


def rows(table: dict[str, list[Row]]) -> list[Any]:
    return [pytest.param(*row, id=row[0][:70]) for each in table.values() for row in each]


def test_there_are_150_mistakes_and_no_three_are_one() -> None:
    counts = [len(each) for table in (PYTHON, SHELL) for each in table.values()]
    assert max(counts) <= 3
    assert sum(counts) + len(WITHOUT_PARENTHESES) + len(EMPTY) >= 150


class Gate(nn.Module):
    """A block of one's own."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(in_channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def group_norm(in_channels: int) -> nn.Module:
    return nn.GroupNorm(1, in_channels)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the code of the rows may name, in a folder with the files that they name."""
    import torchvision

    zoo = LocalPlugin("acme")
    zoo.block(Gate)

    @zoo.backbone(
        name="tiny", stem="stem", stages=["layer1", "layer2"], head="fc", options={"width": 16}
    )
    def build(spec: Any, *, weights: Any, width: int = 16) -> nn.Module:
        return Tiny()

    builder, network = HybridBuilder(plugins=[zoo]), Tiny()

    def tiny(**arguments: Any) -> Any:
        return builder.from_backbone("tiny", None, **arguments)

    def yaml(text: str) -> Any:
        Path("y.yaml").write_text(text, encoding="utf-8")
        return builder.build("y.yaml")

    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("desk"))
    Path("folder").mkdir()
    for name, text in {
        "recipe.yaml": "backbone: {name: tiny, weights: null}\n",
        "resnet.yaml": "backbone: {name: resnet18, weights: null}\n",
        "none.yaml": "backbone: {name: resnet18, weights: none}\n",
        "misspelt.yaml": "backbone: {name: resnet18, patches: {layer3: {wrap: see}}}\n",
        "missing.yaml": "backbone: {name: 'one:net', patches: {a: {wrap: 'two:gate'}}}\n",
    }.items():
        Path(name).write_text(text, encoding="utf-8")
    torch.save(network.state_dict(), "state.pth")
    torch.save({"model": network.state_dict(), "epoch": 3}, "checkpoint.pt")
    torch.save(network, "whole.pt")
    Path("cut.pth").write_bytes(Path("state.pth").read_bytes()[:1000])
    Path("empty.safetensors").touch()
    tvc_core.partial_load(network, network.state_dict())
    tiny().save("model.safetensors")
    from safetensors.torch import save_file

    save_file(network.state_dict(), "tensors.safetensors")
    yield {
        **{name: getattr(tvc_core, name) for name in tvc_core.__all__},
        **{"tvc_core": tvc_core, "torchvision": torchvision, "torch": torch, "nn": nn},
        **{"b": builder, "zoo": zoo, "tiny": tiny, "yaml": yaml, "network": network},
        **{"Tiny": Tiny, "Gate": Gate, "group_norm": group_norm, "Path": Path},
        "unet": unet,
        "GATE_SPEC": tvc_core.BlockSpec(name="gate", factory=Gate),
        "images": torch.zeros(1, 3, 64, 64),
    }
    os.chdir(here)


def check_text(text: str, said: str | tuple[str, ...]) -> None:
    """Look at a message: it says what it must, and ends each sentence once."""
    for each in (said,) if isinstance(said, str) else said:
        assert each in text, text
    assert not re.search(r"\?\.|\.\.(?!\.)(?<!\.\.\.)| {2}|\x1b|\n| object at 0x", text), text
    assert len(text) < 900, text


def check_advice(text: str, right: str) -> None:
    """What is near must be what works: the first near name stands in it."""
    near = re.search(r"Did you mean '([^']+)'", text)
    assert near is None or near[1] in right, f"{near[1]!r} is not in {right}"


@pytest.mark.parametrize(("code", "said", "right"), rows(PYTHON))
def test_a_mistake_in_python(
    code: str, said: str | tuple[str, ...], right: str | None, desk: dict[str, Any]
) -> None:
    with pytest.raises((tvc_core.TvcError, TypeError, ValueError)) as caught:
        eval(code, dict(desk))
    check_text(str(caught.value), said)
    if right is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eval(right, dict(desk))
        check_advice(str(caught.value), right)


@pytest.mark.parametrize("code", WITHOUT_PARENTHESES)
def test_the_class_builds_with_what_is_installed(code: str, desk: dict[str, Any]) -> None:
    assert isinstance(eval(code, dict(desk)), nn.Module)


def tvc(line: str) -> Any:
    testing = pytest.importorskip("click.testing")
    commands = pytest.importorskip("tvc_cli.commands")
    return testing.CliRunner().invoke(commands.tvc, shlex.split(line), prog_name="tvc")


PYTHON_CALLS = re.compile(r"HybridBuilder|Registry\(|model\.\w+\(|partial_load|tvc_core\.")


@pytest.mark.parametrize(("line", "said", "right"), rows(SHELL))
def test_a_mistake_in_the_shell(
    line: str, said: str | tuple[str, ...], right: str | None, desk: dict[str, Any]
) -> None:
    result = tvc(line)
    assert result.exit_code in (1, 2) and result.stdout == ""
    text = result.stderr.rstrip().splitlines()[-1].partition("rror: ")[2]
    check_text(text, said)
    assert "Traceback" not in result.stderr
    before, _, after = text.partition("n Python, ")
    assert not PYTHON_CALLS.search(before if after else text), text
    if right is not None:
        assert tvc(right).exit_code == 0
        if "resnt18" not in line:
            check_advice(text, right)


@pytest.mark.parametrize("line", EMPTY)
def test_a_pattern_that_matches_nothing(line: str, desk: dict[str, Any]) -> None:
    said, right = EMPTY[line]
    result = tvc(line)
    assert (result.exit_code, result.stdout) == (0, "")
    check_text(result.stderr.splitlines()[0], said)
    if right is not None:
        assert tvc(right).stdout


@pytest.mark.parametrize("line", LISTED)
def test_a_list_understands(line: str, desk: dict[str, Any]) -> None:
    result = tvc(line)
    assert result.exit_code == 0
    assert LISTED[line] in [row.split()[0] for row in result.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:The plugin :tvc_core.RegistryWarning")
def test_the_fault_of_a_plugin_ends_once(fake_distribution: Any) -> None:
    """The fault ends in "Did you mean ...?", and more follows."""
    source = (
        "from tvc_core import hookimpl\nTVC_API = (1, 0)\n@hookimpl\ndef tvc_blockz():\n    pass"
    )
    fake_distribution("acme-gates", source)
    with pytest.raises(tvc_core.UnknownNameError) as caught:
        HybridBuilder().create_block("acme-gates:gate", 8)
    check_text(str(caught.value), "Did you mean 'tvc_blocks'")
    assert re.search(r"[?.] 'tvc plugins' shows all plugins\.$", str(caught.value))
