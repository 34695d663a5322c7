"""Whole models of other people's stacks: the host alone against the host with hexad, `make bench-embed`."""
