"""Data sets: loading, checks, splits, batched augmentation, sampling. Nothing is imported here."""
