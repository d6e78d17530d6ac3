"""Gate and map in as few passes over memory as they need, forward and backward.

A gate that is computed from a map and multiplied with it is small and the map is large, so what it
costs is how often the map is read and written. Autograd does that 14 times for a squeeze-excite,
and 7 are enough: forward one pass reads the map for its means, and one reads it and writes the
product; backward one reads map and gradient for their dot products, and one reads the gradient and
writes the result.

How backward gets along with that: the functions of a block come in pairs. The one that pools the
map hands the map on beside its statistics, and the one that multiplies takes it from there. So the
gradient that reaches the first is the whole gradient but for the statistics' share, which it adds
in the pass that multiplies with the gate: the second hands it through as it is. Between the two are
the block's own layers, ordinary modules on small tensors: hooks, wrappers and quantized layers act
there as everywhere.

The second function also gets the map as it is. When a derivative of the derivative is wanted,
backward is ordinary code, and all gradients go that way.

Under torch.compile, torch.export, torch.fx, tracing, torch.func and forward-mode derivatives, for
tensors of other classes, other layouts and without a backward pass to come, plain code runs, which
computes the same (`passes.fuses` decides). Compilers fuse it by themselves.

On a CPU and where numba is installed, two blocks run in loops that it compiles (`loops`, `compiled`
decides): all of CBAM (`both`), and the passes of gates of rows and columns (`strips`).
"""

from .both import cbam, takes_cbam
from .channel import scale_channels
from .context import scale_by_context
from .layers import neighbor_scores, pixel_scores, pointwise
from .passes import blend
from .product import scale_by_strips, strip_means
from .spatial import scale_both, scale_pixels

__all__ = [
    "blend",
    "cbam",
    "neighbor_scores",
    "pixel_scores",
    "pointwise",
    "scale_both",
    "scale_by_context",
    "scale_by_strips",
    "scale_channels",
    "scale_pixels",
    "strip_means",
    "takes_cbam",
]
