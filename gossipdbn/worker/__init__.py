"""The production driver of the core: one process that hosts slots over a log and a snapshot store."""
