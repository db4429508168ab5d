"""Registered networks, one file for each. The registry imports them all."""
