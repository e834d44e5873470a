"""Detectors in JAX: models, data, training and evaluation."""
