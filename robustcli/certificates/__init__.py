"""What can be proven of a classifier by sampling it: randomised smoothing; and what an answer is."""
