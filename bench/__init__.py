"""Measurements of speed and memory. See README.md for the map."""
