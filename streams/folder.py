r"""Feed a folder of CSV, Parquet or JSON-lines files into a run; with --watch, new files for as long as it runs.

    python streams/folder.py --run RUN --bootstrap kafka1:9092 --checkpoint feed/checkpoint \
        --kind parquet --path /data/sensors
    spark-submit --master spark://host:7077 --jars $JARS streams/folder.py --kind csv --path hdfs://nn/data --run ...

``$JARS``: see ``images.py``. Files must appear whole (write elsewhere, then rename) and never change afterwards. A row
that does not fit the run's schema stops the job with file, row and column; repair the file and start the job again.
"""

import sys

from gossipdbn.source import SourceConfig
from gossipdbn.spark.job import job_parser, run_job

if __name__ == "__main__":
    parser = job_parser(__doc__)
    parser.add_argument("--kind", required=True, choices=["csv", "parquet", "json"])
    parser.add_argument("--path", required=True, help="folder, file or glob; or a URL that Spark can read")
    parser.add_argument("--watch", action="store_true", help="go on with new files until stopped")
    parser.add_argument("--no-header", action="store_true", help="CSV without a line of names: columns c0, c1, ...")
    parser.add_argument("--delimiter", default=",", help="CSV separator")
    parser.add_argument("--files-per-batch", type=int, default=16, help="back-pressure: files of one Spark batch")
    options = parser.parse_args()
    status, line = run_job(
        options,
        lambda o: SourceConfig(
            o.kind, o.path, header=not o.no_header, delimiter=o.delimiter, endless=o.watch,
            files_per_batch=o.files_per_batch,
        ),
    )  # fmt: skip
    print(line, file=sys.stderr if status else sys.stdout)
    sys.exit(status)
