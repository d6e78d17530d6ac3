"""What gates of channels by their spatial means have in common."""

from __future__ import annotations

from torch import Tensor, nn

from .fused import scale_channels

__all__ = ["MeanGate"]


class MeanGate(nn.Module):
    """Scale each channel by a gate computed from the spatial means; how, a subclass says in
    `_excite`.

    Maps [N, C, H, W] to the same shape, dtype and device.
    """

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1], each entry from 0 to 1."""
        return self._excite(x.mean((2, 3), keepdim=True))

    def mix(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """Return x * (1 + alpha * (gate(x) - 1)) as one computation; without alpha x * gate(x)."""
        return scale_channels(x, self._excite, alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the map by its gate."""
        return self.mix(x, None)

    def _excite(self, means: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1] of spatial means [N, C, 1, 1]."""
        raise NotImplementedError
