"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
    ("convnext_base", "IMAGENET1K_V1"): {"num_params": 88591464, "gflops": 15.355, "acc1": 84.062},
    ("convnext_large", "IMAGENET1K_V1"): {
        "num_params": 197767336,
        "gflops": 34.361,
        "acc1": 84.414,
    },
    ("convnext_small", "IMAGENET1K_V1"): {"num_params": 50223688, "gflops": 8.684, "acc1": 83.616},
    ("convnext_tiny", "IMAGENET1K_V1"): {"num_params": 28589128, "gflops": 4.456, "acc1": 82.52},
}
