"""Finds plugins and resolves names. Imports no torch."""

from .discovery import PluginInfo
from .names import Registry
from .offers import Named, parameters_of

__all__ = ["Named", "PluginInfo", "Registry", "parameters_of"]
