r"""Feed idx images (the format of MNIST) into a run.

As a plain program::

    python streams/images.py --run RUN --bootstrap kafka1:9092 --checkpoint feed/checkpoint \
        --images examples/data/mnist/train-images-idx3-ubyte.gz --labels examples/data/mnist/train-labels-idx1-ubyte.gz

or through a cluster's own spark-submit, with Spark's Kafka connector (the jars that gossipdbn pins)::

    JARS=$(python -c 'from gossipdbn.spark.session import kafka_jars; print(*kafka_jars(), sep=",")')
    spark-submit --master spark://host:7077 --jars $JARS streams/images.py --run ...

Settings for standalone, YARN and Kubernetes are in ``streams/conf``; docs/clusters.md has the commands.

A killed job goes on from its checkpoint when it is started again; rows arrive exactly once.
"""

import sys

from gossipdbn.source import SourceConfig
from gossipdbn.spark.job import job_parser, run_job

if __name__ == "__main__":
    parser = job_parser(__doc__)
    parser.add_argument("--images", required=True, help="idx file of images, gzipped or not")
    parser.add_argument("--labels", default="", help="idx file of their labels")
    options = parser.parse_args()
    status, line = run_job(options, lambda o: SourceConfig("idx", o.images, labels=o.labels))
    print(line, file=sys.stderr if status else sys.stdout)
    sys.exit(status)
