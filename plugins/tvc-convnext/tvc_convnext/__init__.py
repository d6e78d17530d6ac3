"""ConvNeXt backbones for tvc."""
