"""What happens in videos: in one, in parts of a long one, in one that is still going on."""
