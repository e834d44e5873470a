"""Pure functions of a single image."""
