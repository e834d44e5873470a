"""The loss language: formulas as data, their operators and search spaces.  Knows nothing of any search."""
