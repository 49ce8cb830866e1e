#!/bin/sh
# Spark always passes --add-modules=jdk.incubator.vector; this Java runtime does not contain that module.
for a in "$@"; do
  shift
  [ "$a" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$a"
done
exec "@JAVA@" "$@"
