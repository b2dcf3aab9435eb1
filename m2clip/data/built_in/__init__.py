"""The built-in data sets, drawn on this machine."""
