"""One file per published model: a frozen ``Config``, a torch ``Module``, ``KEYS`` (upstream name -> ours)."""
