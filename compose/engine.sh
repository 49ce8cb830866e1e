#!/bin/sh
# Finds a container engine, or starts one of its own where it may (root, dockerd installed).
#
#   eval "$(compose/engine.sh start)"     exports DOCKER_HOST; exit status 1 and the reason where there is no way
#   compose/engine.sh stop                ends the engine that this script started
#
# GOSSIPDBN_ENGINE_DIR is its folder (default: gossipdbn-engine below the temporary folder).
set -eu
D=${GOSSIPDBN_ENGINE_DIR:-${TMPDIR:-/tmp}/gossipdbn-engine}
SOCKET=$D/docker.sock
running() { docker -H "unix://$SOCKET" info > /dev/null 2>&1; }
fail() { echo "engine: $1" >&2; exit 1; }

case ${1:-start} in
start)
  command -v docker > /dev/null || fail "docker is not installed (Debian: apt-get install docker.io docker-compose)"
  if docker info > /dev/null 2>&1; then echo "export DOCKER_HOST='${DOCKER_HOST:-unix:///var/run/docker.sock}'"; exit 0; fi
  if ! running; then
    command -v dockerd > /dev/null || fail "no engine answers and dockerd is not installed"
    [ "$(id -u)" = 0 ] || fail "no engine answers, and only root may start one"
    mkdir -p "$D"
    # Settings of its own: an engine of the system, if there is one, is not touched.
    echo '{}' > "$D/daemon.json"
    setsid dockerd --config-file "$D/daemon.json" --data-root "$D/data" --exec-root "$D/exec" \
      -H "unix://$SOCKET" --pidfile "$D/docker.pid" > "$D/dockerd.log" 2>&1 < /dev/null &
    tries=0
    until running; do
      tries=$((tries + 1))
      [ $tries -le 100 ] || { tail -n 5 "$D/dockerd.log" >&2; fail "dockerd did not start; its log is $D/dockerd.log"; }
      sleep 0.2
    done
  fi
  echo "export DOCKER_HOST='unix://$SOCKET'"
  ;;
stop)
  [ -f "$D/docker.pid" ] || exit 0
  pid=$(cat "$D/docker.pid")
  kill "$pid" 2> /dev/null || true
  tries=0
  while kill -0 "$pid" 2> /dev/null && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.2; done
  ;;
*) fail "usage: engine.sh start|stop" ;;
esac
