#!/bin/sh
# Runs a whole training job on the cluster of compose.yaml and checks its result; ends with status 0 when all is right.
#
#   usage: run-job.sh [WORKERS]        KEEP=1 leaves the cluster running; SAME_IMAGE=1 does not rebuild; PYTHON=... as in build-kafka-image.sh
set -eu
cd "$(dirname "$0")"
WORKERS=${1:-2}
PYTHON=${PYTHON:-../.venv/bin/python}
export PYTHON
eval "$(./engine.sh start)"
docker image inspect gossipdbn/kafka:7.9.0 > /dev/null 2>&1 || ./build-kafka-image.sh
[ -n "${SAME_IMAGE:-}" ] || "$PYTHON" build-image.py   # always the present code; SAME_IMAGE=1 keeps the image that is there
if docker compose version > /dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
COMPOSE="$COMPOSE -p ${PROJECT:-gossipdbn}"
finish() {
  status=$?
  if [ $status != 0 ]; then $COMPOSE ps; $COMPOSE logs --tail=15; fi
  [ "${KEEP:-}" = 1 ] || $COMPOSE down -v -t 3 > /dev/null 2>&1
  exit $status
}
trap finish EXIT

$COMPOSE up -d --scale "worker=$WORKERS" k1 k2 k3 namenode datanode spark executor worker
for service in k1 k2 k3 namenode datanode spark; do
  tries=0
  until [ "$(docker inspect -f '{{.State.Health.Status}}' "$($COMPOSE ps -q $service)")" = healthy ]; do
    tries=$((tries + 1))
    [ $tries -le 120 ] || { echo "run-job: $service does not become healthy" >&2; exit 1; }
    sleep 1
  done
done
$COMPOSE run --rm train
$COMPOSE run --rm -T train python3 - << 'CHECK'
import json
from gossipdbn.adapters.stores import open_store

facts = json.load(open("/state/result.json"))
assert facts["state"] == "finished", facts["state"]
assert facts["ledger"]["exact"] and not facts["ledger"]["outstanding_rows"], facts["ledger"]
assert len(facts["digests"]) >= 2 and len(set(facts["digests"].values())) == 1, facts["digests"]
snapshots = open_store("hdfs://namenode:8020/gossipdbn").names("snapshots/")
assert snapshots, "no snapshots on HDFS"
print(f"right: {facts['ledger']['trained_rows']} rows, {facts['updates']} updates, {len(snapshots)} snapshots on HDFS,",
      f"digest {facts['digests']['log']} at {', '.join(sorted(facts['digests']))}")
CHECK
