"""The operations: one file each, always in the same order."""
