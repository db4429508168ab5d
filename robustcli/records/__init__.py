"""What was measured, as JSON lines and documents. Nothing is imported here."""
