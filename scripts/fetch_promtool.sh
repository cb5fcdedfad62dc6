#!/bin/sh
# Print the path of promtool: the installed one, or that of Debian's package, fetched into .cache without installing it.
set -eu
if command -v promtool; then exit 0; fi
folder=.cache/promtool
if ! test -x "$folder/usr/bin/promtool"; then
  mkdir -p "$folder"
  (cd "$folder" && apt-get download prometheus >&2 && dpkg -x prometheus_*.deb . && rm prometheus_*.deb) \
    || { echo "promtool cannot be fetched: install Prometheus, or set PROMTOOL" >&2; exit 0; }
fi
echo "$PWD/$folder/usr/bin/promtool"
