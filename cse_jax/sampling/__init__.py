"""Random formulas, and variations of given ones."""
