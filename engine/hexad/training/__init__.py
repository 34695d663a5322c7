"""Training objectives, one file per family, over one loop that survives being killed."""
