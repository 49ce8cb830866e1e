#!/bin/sh
# Builds gossipdbn/kafka:7.9.0 from this folder: the jars of the committed lock, a Java runtime cut from the JDK at
# hand, a static busybox. No image registry is used.
#
#   usage: build-kafka-image.sh [BUILD_DIR]        needs: docker, jlink (a full JDK 17+), busybox-static
#   PYTHON=... chooses the interpreter with gossipdbn; BASE=... another base image than an empty one.
#
# The layout and the tag (a version >= 7.0.0) are those testcontainers' KafkaContainer expects.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-"$HERE/../.venv/bin/python"}
TAG=${TAG:-gossipdbn/kafka:7.9.0}
for tool in docker jlink busybox ldd; do
  command -v $tool > /dev/null || { echo "build-kafka-image: $tool is missing (packages: docker.io, openjdk-17-jdk-headless, busybox-static)" >&2; exit 1; }
done
LIB=$(cd / && "$PYTHON" -c 'from gossipdbn.embedded.artifacts import KAFKA, ensure; print(ensure(KAFKA))')
if [ $# -ge 1 ]; then B=$1; mkdir -p "$B"; else B=$(mktemp -d); trap 'rm -rf "$B"' EXIT; fi
R=$B/root
for d in bin sbin etc/kafka tmp var/lib/kafka/data usr/bin proc sys dev root; do mkdir -p "$R/$d"; done
mkdir -p "$B/lib" "$B/bin"

BUSYBOX=$(command -v busybox)
cp "$BUSYBOX" "$R/bin/busybox"
for applet in $("$BUSYBOX" --list); do [ -e "$R/bin/$applet" ] || ln -s busybox "$R/bin/$applet"; done
# testcontainers writes its start script for bash
[ -e "$R/bin/bash" ] || ln -s busybox "$R/bin/bash"
echo 'root:x:0:0:root:/root:/bin/sh' > "$R/etc/passwd"
echo 'root:x:0:' > "$R/etc/group"
echo 'hosts: files dns' > "$R/etc/nsswitch.conf"

[ -d "$B/jre" ] || jlink --strip-debug --no-man-pages --no-header-files --compress=0 --output "$B/jre" --add-modules \
  java.base,java.logging,java.management,java.naming,java.security.jgss,java.security.sasl,java.sql,java.xml,java.desktop,jdk.unsupported,jdk.crypto.ec,jdk.management,jdk.zipfs
# The shared libraries that the runtime links to (C library, zlib, C++ for snappy), and the resolver's plug-ins.
find "$B/jre" \( -name '*.so' -o -path '*/bin/java' \) -print0 | xargs -0 ldd 2> /dev/null |
  sed -n 's/.*=> *\(\/[^ ]*\) (.*/\1/p; s/^[[:space:]]*\(\/lib[^ ]*\/ld[^ ]*\) (.*/\1/p' | grep -v "$B" | sort -u |
  while read -r library; do mkdir -p "$R$(dirname "$library")"; cp -L "$library" "$R$library"; done
for name in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2 libstdc++.so.6 libgcc_s.so.1; do
  for library in /lib/*-linux-gnu/$name /usr/lib/*-linux-gnu/$name; do
    [ ! -e "$library" ] || { mkdir -p "$R$(dirname "$library")"; cp -L "$library" "$R$library"; }
  done
done

cp "$LIB"/*.jar "$B/lib/"
cp "$HERE/kafka/bash-config" "$HERE/kafka/configure" "$HERE/kafka/launch" "$B/bin/"
cp "$HERE/kafka/kafka-storage" "$HERE/kafka/healthy" "$R/bin/"
cp "$HERE/kafka/Dockerfile" "$B/"
DOCKER_BUILDKIT=0 docker build -q ${BASE:+--build-arg "BASE=$BASE"} -t "$TAG" "$B"
