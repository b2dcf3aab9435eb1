"""What is wrong with a list of videos."""
