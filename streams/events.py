r"""Feed events of a Kafka topic into a run, while they come.

    python streams/events.py --run RUN --bootstrap kafka1:9092 --checkpoint feed/checkpoint --topic clicks
    spark-submit --master spark://host:7077 --jars $JARS streams/events.py --topic clicks --until-now --run ...

``$JARS``: see ``images.py``. Events are JSON objects, or with ``--fields a,b,c`` lines of CSV. Keep the checkpoint: it
says which events went into which shard, and a feed without it is refused.
"""

import sys

from gossipdbn.source import SourceConfig
from gossipdbn.spark.job import job_parser, run_job

if __name__ == "__main__":
    parser = job_parser(__doc__)
    parser.add_argument("--topic", required=True, help="the topic of events")
    parser.add_argument("--source-bootstrap", default="", help="its brokers, where they are not the run's")
    parser.add_argument("--fields", default="", help="names of the values of CSV events, in order, with commas")
    parser.add_argument("--starting", default="earliest", choices=["earliest", "latest"])
    parser.add_argument("--until-now", action="store_true", help="end with the events that are there, with an end mark")
    parser.add_argument("--rows-per-batch", type=int, default=50_000, help="back-pressure: events of one Spark batch")
    options = parser.parse_args()
    status, line = run_job(
        options,
        lambda o: SourceConfig(
            "kafka", topic=o.topic, bootstrap=o.source_bootstrap, format="csv" if o.fields else "json",
            fields=tuple(o.fields.split(",")) if o.fields else (), starting=o.starting, endless=not o.until_now,
            rows_per_batch=o.rows_per_batch,
        ),
    )  # fmt: skip
    print(line, file=sys.stderr if status else sys.stdout)
    sys.exit(status)
