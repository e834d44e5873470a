"""Formulas by the hundred million: random or all of a size, and the survivors on disk."""
