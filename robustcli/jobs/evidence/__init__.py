"""What is made of records: reports, gates, comparisons. Nothing here computes a number of a model."""
