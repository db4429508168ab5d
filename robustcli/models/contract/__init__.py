"""What a network that is not ours takes and gives back: a probe finds it once, one adapter keeps to it."""
