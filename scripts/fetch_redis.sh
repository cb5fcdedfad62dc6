#!/bin/sh
# Print a folder with redis-server and redis-cli: the installed ones', or one of Debian's packages, fetched into .cache without installing them.
set -eu
if found=$(command -v redis-server); then dirname "$found"; exit 0; fi
folder=.cache/redis
if ! test -x "$folder/bin/redis-server"; then
  mkdir -p "$folder/bin"
  (cd "$folder" && apt-get download redis-server redis-tools liblzf1 libjemalloc2 >&2 && for package in *.deb; do dpkg -x "$package" .; done && rm ./*.deb) \
    || { echo "redis-server cannot be fetched: install it (Debian: apt-get install redis-server)" >&2; exit 0; }
  libraries=$(dirname "$(find "$PWD/$folder/usr/lib" -name 'liblzf.so*' | head -n 1)")
  for program in redis-server redis-cli; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/usr/bin/%s "$@"\n' "$libraries" "$PWD/$folder" "$program" > "$folder/bin/$program"
    chmod +x "$folder/bin/$program"
  done
fi
echo "$PWD/$folder/bin"
