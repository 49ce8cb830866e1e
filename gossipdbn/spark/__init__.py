"""Everything that runs inside Apache Spark: the feed, placement of workers, the ML API, scoring."""
