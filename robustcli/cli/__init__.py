"""The command line: parse, load the configuration, one call, an exit code."""
