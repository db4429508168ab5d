"""What a run is asked to do: the schema of a configuration, its loader, its writer."""
