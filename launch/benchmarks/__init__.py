"""The suites of ``launch/benchmark.py``."""
