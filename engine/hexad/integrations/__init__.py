"""hexad inside other libraries: a module per host, which imports that host only when it is asked to."""
