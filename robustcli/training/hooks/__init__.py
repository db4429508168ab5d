"""Registered training hooks, one file for each. The registry imports them all."""
