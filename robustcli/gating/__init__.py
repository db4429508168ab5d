"""Thresholds, and what the records of a run say of them: a verdict with a stated error rate."""
