"""Small residual networks for 32x32 images, and efficient local attention, as a plugin for tvc."""

__version__ = "0.1.0"
