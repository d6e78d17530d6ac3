"""MobileNet backbones for tvc."""
