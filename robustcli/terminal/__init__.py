"""What a person sees while a verb works: console, progress bar, output streams. Nothing is imported here."""
