"""Trained detectors on data sets and image files, and how they score."""
