"""Finds plugins and resolves names. Imports no torch."""

from .discovery import PluginInfo
from .names import Named, Registry

__all__ = ["Named", "PluginInfo", "Registry"]
