"""The other convolutional backbones of torchvision for tvc."""
