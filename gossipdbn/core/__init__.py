"""The protocol itself, sans I/O: events in, effects out, the same decisions for the same log."""
