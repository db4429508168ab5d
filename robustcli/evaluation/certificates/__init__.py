"""Certificates of many samples, beside the attacked accuracy of the same samples.

`certifier` says what a method is called with, `attacked` attacks what was certified, `shards` keeps both.
"""
