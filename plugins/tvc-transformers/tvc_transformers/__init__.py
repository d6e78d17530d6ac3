"""Vision transformers of torchvision for tvc."""
