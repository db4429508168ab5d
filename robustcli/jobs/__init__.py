"""One function per verb: a loaded configuration in, a JSON document and the files of a run out."""
