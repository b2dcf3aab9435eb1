"""Data sets stored for fast reading."""
