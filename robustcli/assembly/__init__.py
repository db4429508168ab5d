"""A configuration in, objects out: ball, attacks, samples, model, engine and what they cost."""
