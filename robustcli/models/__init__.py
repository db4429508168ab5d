"""Networks that normalise inside: one file per architecture, one function per kind of reference to a model.

Nothing is imported here.
"""
