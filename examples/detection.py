"""Guide, "Extracting Features": a detector of torchvision on a hybrid, trained for some steps on
generated images.

The images show colored rectangles; red, green and blue ones are the classes. Only the last two
stages, the inserted block and the detector learn. Prints the scales of the pyramid, the loss as it
falls, how many frozen parameters moved, and what is found on a new image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from tvc_dense import as_detection_backbone

from tvc_core import HybridBuilder

Sample = tuple[Tensor, dict[str, Tensor]]


def make_image(side: int, generator: torch.Generator) -> Sample:
    """Return an image [3, H, W] of gray noise with three rectangles on it, and their boxes and
    labels.
    """
    image = torch.rand((1, side, side), generator=generator).repeat(3, 1, 1) / 2
    boxes, labels = [], []
    for _ in range(3):
        width, height = torch.randint(side // 6, side // 2, (2,), generator=generator).tolist()
        left, top = (
            int(torch.randint(0, side - size, (1,), generator=generator))
            for size in (width, height)
        )
        label = int(torch.randint(1, 4, (1,), generator=generator))
        image[:, top : top + height, left : left + width] = 0.1
        image[label - 1, top : top + height, left : left + width] = 1.0
        boxes.append([left, top, left + width, top + height])
        labels.append(label)
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone",
        default="resnet18",
        help="any installed backbone with several scales (%(default)s)",
    )
    parser.add_argument("--weights", default="none", help="none or DEFAULT (%(default)s)")
    parser.add_argument(
        "--target", default="layer4", help="module of it that se is put around (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=40, help="of training (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (%(default)s)")
    parser.add_argument("--side", type=int, default=64, help="of the images [pixels] (%(default)s)")
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    model = HybridBuilder().from_backbone(
        arguments.backbone, weights=weights, patches={arguments.target: {"wrap": "se"}}
    )
    model.freeze_backbone(unfreeze_stages=[-2, -1])
    print(
        "levels:",
        ", ".join(f"{level.part} (stride {level.stride})" for level in model.pyramid_info),
    )

    backbone = as_detection_backbone(model, out_channels=64, extra="p6p7")
    detector = FCOS(backbone, num_classes=4, min_size=arguments.side, max_size=arguments.side)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    detector.train()
    losses: list[float] = []
    for step in range(arguments.steps):
        images, targets = zip(
            *(make_image(arguments.side, generator) for _ in range(arguments.batch)), strict=True
        )
        parts = detector(list(images), list(targets))
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, arguments.steps // 6) == 0 or step == arguments.steps - 1:
            shares = ", ".join(f"{name} {value.item():.2f}" for name, value in parts.items())
            print(f"step {step:>3}: loss {loss.item():.3f} ({shares})")
    few = max(1, arguments.steps // 4)
    print(
        f"mean loss of the first and last {few} steps: {sum(losses[:few]) / few:.3f} -> "
        f"{sum(losses[-few:]) / few:.3f}"
    )

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    state = model.state_dict()
    moved = [name for name in frozen if not torch.equal(state[name], kept[name])]
    print(f"frozen parameters that moved: {len(moved)} of {len(frozen)}")
    detector.eval()
    image, target = make_image(arguments.side, generator)
    with torch.no_grad():
        found = detector([image])[0]
    print(
        f"a new image has {len(target['labels'])} rectangles; best score of {len(found['boxes'])} "
        "boxes found: ",
        end="",
    )
    print(f"{max(found['scores'].tolist(), default=0.0):.2f}")


if __name__ == "__main__":
    main()
