"""Victims, comparisons, measurements, tables and pictures."""
