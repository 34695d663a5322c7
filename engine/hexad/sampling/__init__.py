"""Ways of generating: plain functions that read as the algorithm they implement."""
