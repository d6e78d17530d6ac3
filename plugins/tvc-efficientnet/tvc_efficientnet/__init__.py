"""EfficientNet backbones for tvc."""
