"""Services started on this machine: a Kafka broker, an HDFS, and the jars and the Java they need."""
