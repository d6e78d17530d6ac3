"""Every option that a first-party backbone declares is one that its builder takes, with the
declared default.
"""

from __future__ import annotations

import pytest
import torch

from tvc_core import BackboneSpec, Registry
from tvc_core.registry import Named

OFFERS = [offer for offer in Registry().all(BackboneSpec) if offer.owner.startswith("tvc-")]


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.spec.name)
def test_the_builder_takes_all_declared_options(offer: Named[BackboneSpec]) -> None:
    if offer.spec.family == "regnet":
        pytest.skip(
            "torchvision's RegNets do not build on the meta device; the conformance kit's sweep "
            "has them"
        )
    with torch.device("meta"):
        offer.load()(offer.spec, weights=None, **offer.spec.options)
