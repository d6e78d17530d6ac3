"""Attention blocks for tvc."""
