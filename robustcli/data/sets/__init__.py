"""Registered data sets, one file for each kind. The registry imports them all."""
