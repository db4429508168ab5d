"""What can be proven of a classifier: randomised smoothing, and bounds on its graph."""
