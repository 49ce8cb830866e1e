"""Bytes to values and back: envelope, messages, shards, snapshots; nothing here opens a socket."""
