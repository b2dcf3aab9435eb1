"""What the methods reach on the built-in data sets: the studies behind the tables of docs/."""
