"""Maps and logits out of a hybrid: of stages, of the head, and a module that owns what it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ..errors import BackboneError, StageError
from ..surgery.anatomy import STEM
from ..surgery.sites import has_module, left_out_at
from .features import PRE_LOGITS, Taps
from .state import HybridState, state_of

__all__ = ["FeatureExtractor", "forward_head", "last_map", "read_features"]


def read_features(
    network: nn.Module, state: HybridState, x: Tensor, wanted: Sequence[int]
) -> list[Tensor]:
    """Return maps [N, C_i, H_i, W_i] by the indices of features, in the given order."""
    maps = state.taps.collect(network, x, sorted(set(wanted)), within=network)
    return [state.features[index].reader(maps[index], x) for index in wanted]


def last_map(network: nn.Module, state: HybridState, x: Tensor) -> Tensor:
    """Return the last stage's map in the backbone's own layout."""
    last = len(state.features) - 1
    return state.taps.collect(network, x, [last], within=network)[last]


def forward_head(
    network: nn.Module, state: HybridState, features: Tensor, pre_logits: bool
) -> Tensor:
    """Do the work of `HybridModel.forward_head`."""
    bridge, head = state.bridge, state.anatomy.head
    if bridge is None:
        raise BackboneError(
            f"{state.plan.backbone.qualified}: the way from {state.anatomy.taps[-1]!r} to {head!r} "
            "is unknown, so forward_head cannot reproduce it; use forward"
        )
    if not pre_logits:
        return bridge(network, head, features)
    maps = state.taps.collect(lambda x: bridge(network, head, x), features, [PRE_LOGITS])
    if PRE_LOGITS not in maps:
        raise BackboneError(
            f"the last layer of {head!r} is not the one that tvc knows: it was exchanged by hand. "
            "Exchange it by reset_classifier(num_classes), which keeps what reads its input"
        )
    return maps[PRE_LOGITS]


class FeatureExtractor(nn.Module):
    """A hybrid as a module that returns maps; `HybridModel.feature_extractor` makes it.

    Maps images [N, C, H, W] to an OrderedDict of maps. A stage's is [N, C_i, H_i, W_i] whatever the
    layout inside, that of any other module is what the module returns, its patch included. The
    hybrid is the child `body`, whole: its patches and their parameters are in the extractor's
    parameters and state dict, and frozen parts stay in eval mode.

    Args:
        body: the hybrid; used itself, not copied.
        nodes: what to return: paths of modules, stage numbers or "stem", or a mapping of these to
            the names under which they are returned.

    Raises:
        StageError: a stage that is not there, a path that is not a module's, or nothing at all.
    """

    def __init__(
        self, body: nn.Module, nodes: Iterable[int | str] | Mapping[int | str, str] | int | str
    ) -> None:
        super().__init__()
        listed = [nodes] if isinstance(nodes, (int, str)) else list(nodes)
        if not listed:
            raise StageError('no map is asked for: give paths, stage numbers or "stem"')
        self.body = body
        self.names = [nodes[n] if isinstance(nodes, Mapping) else str(n) for n in listed]
        self.taps = Taps(body, [self._path(node) for node in listed], None)

    def _path(self, node: int | str) -> str:
        anatomy = state_of(self.body).anatomy
        if isinstance(node, str) and node != STEM:
            if not has_module(self.body, node):
                raise StageError(
                    f"there is no module {node!r} to read from: give the path of a module, a stage "
                    'number or "stem"; model.named_modules() lists all'
                )
            if (gone := left_out_at(self.body, node)) is not None:
                raise StageError(f"{gone!r} was left out: the network ends before it (stages)")
            return node
        return anatomy.taps[anatomy.feature_indices([node])[0]]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps by name."""
        # The taps hang on the hybrid's modules, so they are looked at before each pass, like the
        # hybrid's own: another tool may have exchanged the module they read. What a stage gives is
        # brought to [N, C, H, W]; any other module's map is what that module returns.
        self.taps.place(self.body, None)
        maps = self.taps.collect(self.body, x, within=self.body)
        features = state_of(self.body).features
        readers = {feature.info.module: feature.reader for feature in features}
        return OrderedDict(
            (name, readers[path](maps[index], x) if path in readers else maps[index])
            for index, (name, path) in enumerate(zip(self.names, self.taps.paths, strict=True))
        )
