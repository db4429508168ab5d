"""What survives a kill: atomic writes, locks, run directories, checkpoints, weight files.

Nothing is imported here.
"""
