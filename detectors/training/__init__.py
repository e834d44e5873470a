"""Training: the compiled step, one training, many side by side, and the trainings of a search."""
