"""What a folder, a table or a file of arrays holds: which splits, and which classes in which order."""
