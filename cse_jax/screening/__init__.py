"""What is found out about formulas without training anything: verification, duplicates, simulation."""
