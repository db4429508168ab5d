"""A report: what a run measured, in the order in which a reader asks, as one HTML page and as markdown."""
