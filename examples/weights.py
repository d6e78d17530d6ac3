"""Guide, "Weight Utilities": load a checkpoint into a model that it does not quite fit, and copy
weights between models.

The checkpoint has 1000 classes and no attention; the model has 10 classes and squeeze-excite.
Prints the reports, and the error that says which tensors do not fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from tvc_core import HybridBuilder, WeightsError, partial_load, transfer_weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="resnet18", help="one of torchvision's ResNets (%(default)s)"
    )
    parser.add_argument(
        "--weights", default="none", help="of the checkpoint: none or DEFAULT (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)

    builder = HybridBuilder()
    pretrained = builder.from_torchvision(arguments.backbone, weights=weights)
    checkpoint = pretrained.state_dict()
    patches = {"layer3": {"wrap": "se"}}
    model = builder.from_torchvision(
        arguments.backbone, weights=None, patches=patches, num_classes=10
    )

    print("A checkpoint that does not fit is refused, and nothing changes:")
    try:
        partial_load(model, checkpoint)
    except WeightsError as error:
        print(f"  {error}")

    print("\nWith ignore_mismatch=True, what fits is loaded and the rest starts fresh:")
    report = partial_load(model, checkpoint, ignore_mismatch=True, init_new_layers="kaiming")
    print(report.summary())

    print("\nFrom model to model, without the classifier:")
    target = builder.from_torchvision(
        arguments.backbone, weights=None, patches=patches, num_classes=10
    )
    print(
        transfer_weights(
            source=pretrained, target=target, exclude_patterns=["fc", "classifier"]
        ).summary()
    )

    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        difference = (
            (pretrained.eval().forward_features(image) - target.eval().forward_features(image))
            .abs()
            .max()
        )
    print(f"\nlargest difference of a feature between the two models: {difference:g}")


if __name__ == "__main__":
    main()
