"""hexad: one kernel engine for six families of generative models."""

__version__ = "0.1.0"
