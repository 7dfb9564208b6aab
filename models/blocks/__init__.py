"""Layers that more than one architecture uses, or that a reader would look for by name."""
