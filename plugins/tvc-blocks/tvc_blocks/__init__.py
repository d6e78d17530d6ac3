"""Building blocks from torchvision.ops for tvc."""
