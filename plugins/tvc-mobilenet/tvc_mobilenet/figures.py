"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
    ("mobilenet_v2", "IMAGENET1K_V1"): {"num_params": 3504872, "gflops": 0.301, "acc1": 71.878},
    ("mobilenet_v2", "IMAGENET1K_V2"): {"num_params": 3504872, "gflops": 0.301, "acc1": 72.154},
    ("mobilenet_v3_large", "IMAGENET1K_V1"): {
        "num_params": 5483032,
        "gflops": 0.217,
        "acc1": 74.042,
    },
    ("mobilenet_v3_large", "IMAGENET1K_V2"): {
        "num_params": 5483032,
        "gflops": 0.217,
        "acc1": 75.274,
    },
    ("mobilenet_v3_small", "IMAGENET1K_V1"): {
        "num_params": 2542856,
        "gflops": 0.057,
        "acc1": 67.668,
    },
}
