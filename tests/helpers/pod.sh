#!/bin/bash
# Run a command as a pod of infra/kuberay would: own processes and network, a root that cannot be written to, user 1000
# without capabilities, and only /tmp, /dev/shm and the home folder writable. Within: unshare --mount --pid --net --fork.
#   pod.sh FOLDER PYTHON_HOME COMMAND...
# FOLDER becomes /tmp of the pod. PYTHON_HOME is made readable, as it may lie in root's own folder.
set -euo pipefail
folder=$1 python_home=$2
shift 2
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
if [[ $python_home == /root/* ]]; then
  mkdir -p "$folder/.python"
  mount --bind "$python_home" "$folder/.python"
  mount -t tmpfs -o mode=755 none /root
  mkdir -p "$python_home"
  mount --bind "$folder/.python" "$python_home"
fi
mkdir -p "$folder/home"
chown -R 1000:1000 "$folder"
mount --bind / / && mount -o remount,ro,bind /
mount --bind "$folder" /tmp && mount -o remount,rw,bind /tmp
mount -t tmpfs -o mode=1777 none /dev/shm
cd /
exec setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all "$@"
