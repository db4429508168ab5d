"""Tables, plots, galleries and summaries, made from records alone: never from a model, never with torch."""
