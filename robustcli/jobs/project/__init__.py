"""Work functions of the verbs around a project of the user's: `init`, `export`, `env`."""
