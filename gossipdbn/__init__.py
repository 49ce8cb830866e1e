"""Deep belief networks trained by gossip over Apache Kafka, fed by Apache Spark; every run replays to the bit."""
