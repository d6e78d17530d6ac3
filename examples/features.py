"""Guide, "Extracting Features": the maps of a ResNet-50's stem and stages, and a feature pyramid on
top of them.

Prints the shape of every map, of every level of torchvision's FeaturePyramidNetwork, whose widths
come from `stage_info`, and whether features and head together are the whole network.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torchvision.ops import FeaturePyramidNetwork

from tvc_core import HybridBuilder


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="resnet50", help="any installed backbone (%(default)s)"
    )
    parser.add_argument("--weights", default="none", help="none or DEFAULT (%(default)s)")
    parser.add_argument("--side", type=int, default=224, help="of the image [pixels] (%(default)s)")
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)

    model = HybridBuilder().from_backbone(arguments.backbone, weights=weights).eval()
    x = torch.randn(1, 3, arguments.side, arguments.side)
    with torch.no_grad():
        features = model.get_stage_outputs(x)
        names = ["stem", *(f"stage {stage.stage} ({stage.module})" for stage in model.stage_info)]
        for index, (name, feature) in enumerate(zip(names, features, strict=True)):
            print(f"features[{index}]: {name:<22} {list(feature.shape)}")

        pyramid = FeaturePyramidNetwork(
            [stage.channels for stage in model.stage_info], out_channels=256
        )
        levels = pyramid(
            OrderedDict(
                (f"P{stage.stage}", features[stage.stage + 1]) for stage in model.stage_info
            )
        )
        print("\nfeature pyramid:")
        for name, level in levels.items():
            print(f"  {name} {list(level.shape)}")

        final = model.forward_features(x)
        print(f"\nforward_features: {list(final.shape)}")
        print(
            "forward_head(forward_features(x)) equals forward(x): "
            f"{torch.equal(model.forward_head(final), model(x))}"
        )


if __name__ == "__main__":
    main()
