"""Train models from settings or from arrays in memory, in run directories, for commands and for Python."""
