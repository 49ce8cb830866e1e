"""The core driven by a finished log: verify, travel in time, find where two runs part."""
