"""ResNet, ResNeXt and Wide ResNet backbones for tvc."""
