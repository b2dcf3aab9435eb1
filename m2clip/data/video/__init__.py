"""Open videos: the frames of a file or a folder, by index."""
