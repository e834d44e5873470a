"""The search: trainings of candidates, racing, the hall of fame, and the final comparison."""
