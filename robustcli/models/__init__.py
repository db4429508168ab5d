"""Networks that normalise inside: one file per architecture, and what reads a kind of weight file. Nothing is imported here."""
