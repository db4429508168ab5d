"""What machine this is: devices, precision, seeds, signals, ranks. Nothing is imported here."""
