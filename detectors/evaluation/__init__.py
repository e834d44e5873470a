"""Trained detectors applied to data sets and image files, and their scores."""
