"""Ways of generating: plain functions that read as the algorithm they implement."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""``progress(done, of)``, called after each step of sampling."""
