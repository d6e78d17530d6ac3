"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
    ("efficientnet_b0", "IMAGENET1K_V1"): {"num_params": 5288548, "gflops": 0.386, "acc1": 77.692},
    ("efficientnet_b1", "IMAGENET1K_V1"): {"num_params": 7794184, "gflops": 0.687, "acc1": 78.642},
    ("efficientnet_b1", "IMAGENET1K_V2"): {"num_params": 7794184, "gflops": 0.687, "acc1": 79.838},
    ("efficientnet_b2", "IMAGENET1K_V1"): {"num_params": 9109994, "gflops": 1.088, "acc1": 80.608},
    ("efficientnet_b3", "IMAGENET1K_V1"): {"num_params": 12233232, "gflops": 1.827, "acc1": 82.008},
    ("efficientnet_b4", "IMAGENET1K_V1"): {"num_params": 19341616, "gflops": 4.394, "acc1": 83.384},
    ("efficientnet_b5", "IMAGENET1K_V1"): {
        "num_params": 30389784,
        "gflops": 10.266,
        "acc1": 83.444,
    },
    ("efficientnet_b6", "IMAGENET1K_V1"): {
        "num_params": 43040704,
        "gflops": 19.068,
        "acc1": 84.008,
    },
    ("efficientnet_b7", "IMAGENET1K_V1"): {
        "num_params": 66347960,
        "gflops": 37.746,
        "acc1": 84.122,
    },
    ("efficientnet_v2_l", "IMAGENET1K_V1"): {
        "num_params": 118515272,
        "gflops": 56.08,
        "acc1": 85.808,
    },
    ("efficientnet_v2_m", "IMAGENET1K_V1"): {
        "num_params": 54139356,
        "gflops": 24.582,
        "acc1": 85.112,
    },
    ("efficientnet_v2_s", "IMAGENET1K_V1"): {
        "num_params": 21458488,
        "gflops": 8.366,
        "acc1": 84.228,
    },
}
