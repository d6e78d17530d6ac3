"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
    ("maxvit_t", "IMAGENET1K_V1"): {"num_params": 30919624, "gflops": 5.558, "acc1": 83.7},
    ("swin_b", "IMAGENET1K_V1"): {"num_params": 87768224, "gflops": 15.431, "acc1": 83.582},
    ("swin_s", "IMAGENET1K_V1"): {"num_params": 49606258, "gflops": 8.741, "acc1": 83.196},
    ("swin_t", "IMAGENET1K_V1"): {"num_params": 28288354, "gflops": 4.491, "acc1": 81.474},
    ("swin_v2_b", "IMAGENET1K_V1"): {"num_params": 87930848, "gflops": 20.325, "acc1": 84.112},
    ("swin_v2_s", "IMAGENET1K_V1"): {"num_params": 49737442, "gflops": 11.546, "acc1": 83.712},
    ("swin_v2_t", "IMAGENET1K_V1"): {"num_params": 28351570, "gflops": 5.94, "acc1": 82.072},
    ("vit_b_16", "IMAGENET1K_V1"): {"num_params": 86567656, "gflops": 17.564, "acc1": 81.072},
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"): {
        "num_params": 86859496,
        "gflops": 55.484,
        "acc1": 85.304,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1"): {
        "num_params": 86567656,
        "gflops": 17.564,
        "acc1": 81.886,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_b_32", "IMAGENET1K_V1"): {"num_params": 88224232, "gflops": 4.409, "acc1": 75.912},
    ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1"): {
        "num_params": 633470440,
        "gflops": 1016.717,
        "acc1": 88.552,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1"): {
        "num_params": 632045800,
        "gflops": 167.295,
        "acc1": 85.708,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_l_16", "IMAGENET1K_V1"): {"num_params": 304326632, "gflops": 61.555, "acc1": 79.662},
    ("vit_l_16", "IMAGENET1K_SWAG_E2E_V1"): {
        "num_params": 305174504,
        "gflops": 361.986,
        "acc1": 88.064,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_l_16", "IMAGENET1K_SWAG_LINEAR_V1"): {
        "num_params": 304326632,
        "gflops": 61.555,
        "acc1": 85.146,
        "license": "CC-BY-NC-4.0",
    },
    ("vit_l_32", "IMAGENET1K_V1"): {"num_params": 306535400, "gflops": 15.378, "acc1": 76.972},
}
