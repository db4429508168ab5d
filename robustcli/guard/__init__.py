"""The guard of a deployed model: its answers, the evidence it keeps, the rules that look at that evidence."""
