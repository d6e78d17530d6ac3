"""Finds plugins and resolves names. Imports no torch."""

from .discovery import PluginInfo
from .names import Registry
from .offers import Named

__all__ = ["Named", "PluginInfo", "Registry"]
