"""What a run stands on: files that survive a kill, locks, signals, devices, seeds. Nothing is imported here."""
