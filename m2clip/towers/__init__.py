"""CLIP's towers: what a frame or a text becomes inside of them, and where their weights come from."""
