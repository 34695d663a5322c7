"""hexad inside other people's stacks: a file per host, imported only by who uses it."""
