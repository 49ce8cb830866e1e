"""The outside world, one thing per file: Kafka, stores, memory, the clock."""
