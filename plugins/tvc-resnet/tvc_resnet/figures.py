"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
    ("resnet18", "IMAGENET1K_V1"): {"num_params": 11689512, "gflops": 1.814, "acc1": 69.758},
    ("resnet34", "IMAGENET1K_V1"): {"num_params": 21797672, "gflops": 3.664, "acc1": 73.314},
    ("resnet50", "IMAGENET1K_V1"): {"num_params": 25557032, "gflops": 4.089, "acc1": 76.13},
    ("resnet50", "IMAGENET1K_V2"): {"num_params": 25557032, "gflops": 4.089, "acc1": 80.858},
    ("resnet101", "IMAGENET1K_V1"): {"num_params": 44549160, "gflops": 7.801, "acc1": 77.374},
    ("resnet101", "IMAGENET1K_V2"): {"num_params": 44549160, "gflops": 7.801, "acc1": 81.886},
    ("resnet152", "IMAGENET1K_V1"): {"num_params": 60192808, "gflops": 11.514, "acc1": 78.312},
    ("resnet152", "IMAGENET1K_V2"): {"num_params": 60192808, "gflops": 11.514, "acc1": 82.284},
    ("resnext50_32x4d", "IMAGENET1K_V1"): {"num_params": 25028904, "gflops": 4.23, "acc1": 77.618},
    ("resnext50_32x4d", "IMAGENET1K_V2"): {"num_params": 25028904, "gflops": 4.23, "acc1": 81.198},
    ("resnext101_32x8d", "IMAGENET1K_V1"): {
        "num_params": 88791336,
        "gflops": 16.414,
        "acc1": 79.312,
    },
    ("resnext101_32x8d", "IMAGENET1K_V2"): {
        "num_params": 88791336,
        "gflops": 16.414,
        "acc1": 82.834,
    },
    ("resnext101_64x4d", "IMAGENET1K_V1"): {
        "num_params": 83455272,
        "gflops": 15.46,
        "acc1": 83.246,
    },
    ("wide_resnet50_2", "IMAGENET1K_V1"): {
        "num_params": 68883240,
        "gflops": 11.398,
        "acc1": 78.468,
    },
    ("wide_resnet50_2", "IMAGENET1K_V2"): {
        "num_params": 68883240,
        "gflops": 11.398,
        "acc1": 81.602,
    },
    ("wide_resnet101_2", "IMAGENET1K_V1"): {
        "num_params": 126886696,
        "gflops": 22.753,
        "acc1": 78.848,
    },
    ("wide_resnet101_2", "IMAGENET1K_V2"): {
        "num_params": 126886696,
        "gflops": 22.753,
        "acc1": 82.51,
    },
}
