"""Data sets, loaders and pixels."""
