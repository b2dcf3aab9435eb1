"""Lists of videos and their class names, in every format that people write."""
