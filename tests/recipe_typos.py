"""Valid recipes with one of everything, and each of them with one wrong letter."""

from __future__ import annotations

import re

FIRST = """\
version: 1
name: first
description: One of everything.
requires: [tvc-resnet]
seed: 3
max_params: 90000000
backbone:
  name: resnet50
  weights: IMAGENET1K_V2
  options: {replace_stride_with_dilation: [false, false, true]}
  in_channels: 4
  in_channels_policy: [r, g, b, mean]
  patches:
    layer1: {wrap: triplet_attention}
    layer2:
      wrap: {type: cbam_block, params: {reduction: 8}, init: kaiming}
    layer3:
    - inject:
        type: squeeze_excitation
        params:
          squeeze_channels: 16
        position: before
    - wrap: scse
    layer4.1.conv2: {replace: {type: conv_bn_act, params: {channels: 512}}}
head:
  num_classes: 3
  dropout: 0.2
  class_names: [cat, dog, bird]
  hidden: [64]
  activation: hardswish
freeze_backbone:
  head: last
  normalization: frozen
  freeze_patches: true
unfreeze_stages: [-1]
grad_checkpointing: [0]
"""
SECOND = """\
extends: common.yaml
macros:
  attention: {type: spatial_attention, params: {kernel_size: 7}}
  classes: 12
backbone:
  patches:
    layer1: {wrap: "@attention"}
    layer2:
      inject: "@attention"
head:
  heads:
    breed: {num_classes: 5, dropout: 0.1}
    age: {num_classes: 1, activation: gelu, hidden: 32}
"""
COMMON = "backbone: {name: mobilenet_v3_large, weights: null}\n"

_WORDS = """
version name description requires seed max_params backbone weights options in_channels
in_channels_policy patches head num_classes dropout class_names hidden activation freeze_backbone
normalization freeze_patches unfreeze_stages grad_checkpointing wrap inject replace type params init
position resnet50 IMAGENET1K_V2 replace_stride_with_dilation triplet_attention cbam_block reduction
kaiming squeeze_excitation squeeze_channels before scse conv_bn_act channels hardswish last frozen
extends macros @attention @attention spatial_attention kernel_size heads common.yaml gelu
"""
WORDS = _WORDS.split()
"""What is misspelt, wherever it stands; what is free text is not here."""


def typos() -> list[tuple[str, int, int, str, str]]:
    """Return recipes with one letter left out or two exchanged: text, line, column, the right word
    and the wrong one.
    """
    found = []
    for text in (FIRST, SECOND):
        lines = text.splitlines()
        for number, line in enumerate(lines):
            for match in re.finditer(r"@?[\w.]+", line):
                word, column = match[0], match.start()
                if word not in WORDS or len(word) < 4:
                    continue
                middle = len(word) // 2
                swapped = word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]
                for wrong in (word[:-2] + word[-1], swapped):
                    if wrong in (*WORDS, word) or not set(wrong) & set(word):
                        continue
                    other = line[:column] + wrong + line[match.end() :]
                    quoted = line[column - 1 : column] == '"'
                    there = [*lines[:number], other, *lines[number + 1 :]]
                    found.append(
                        ("\n".join(there) + "\n", number + 1, column + 1 - quoted, word, wrong)
                    )
    return found
