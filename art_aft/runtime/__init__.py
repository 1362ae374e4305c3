"""Devices, random state, processes, and what makes the work fast."""
