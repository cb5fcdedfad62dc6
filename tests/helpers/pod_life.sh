#!/bin/bash
# The life of a head and a worker in one pod (tests/helpers/pod.sh), as KubeRay starts, probes and ends them; one line per fact.
set -uo pipefail
export HOME=/tmp/home RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba
export RAY_raylet_start_wait_time_s=120  # as on a node that pulls images for others, or a busy machine
address=http://127.0.0.1:8265
places=(--set store=/tmp/store --set tracking.uri=sqlite:////tmp/mlflow.db --set tracking.artifact_location=/tmp/mlflow --set tracking.journal_folder=/tmp/journal)
say() { echo "FACT $*"; }

say uid "$(id -u)"
touch /forbidden 2>/dev/null || say root is read-only
ulimit -n 65536 2>/dev/null
ray start --head --num-cpus=0 --dashboard-host=0.0.0.0 --port=6379 --object-store-memory=200000000 >/tmp/head.log 2>&1 || cat /tmp/head.log
ray start --address=127.0.0.1:6379 --num-cpus=2 --object-store-memory=200000000 >/tmp/worker.log 2>&1 || cat /tmp/worker.log
say "probe $(wget --tries 20 --retry-connrefused --waitretry 1 -T 5 -q -O- http://localhost:8265/api/gcs_healthz)"
say "without a token $(curl -s -o /dev/null -w '%{http_code}' $address/api/jobs/)"

ray job submit --address $address --submission-id ingest -- python -m jobs.ingest --config "$REPOSITORY/configs/corpus/quickstart.yaml" \
  --set store=/tmp/store >/tmp/ingest.log 2>&1
say "ingest $(ray job status --address $address ingest 2>&1 | grep -oE 'SUCCEEDED|FAILED' | tail -1)"

ray job submit --address $address --submission-id pretrain --no-wait --runtime-env-json '{"env_vars": {"CYTORAY_FAILPOINTS": "train.after_step=sleep:0.3"}}' \
  -- python -m jobs.pretrain --config "$REPOSITORY/configs/pretrain/quickstart.yaml" "${places[@]}" \
  --set train.num_steps=2000 --set train.checkpoint_every=1000 --set workers.num_workers=1 >/tmp/pretrain.log 2>&1
driver_log() { cat /tmp/ray/session_*/logs/job-driver-pretrain.log 2>/dev/null; }
for _ in $(seq 240); do
  driver_log | grep -q "started with" && break
  sleep 1
done
say "checkpoints before $(ls -d /tmp/store/runs/pretrain/ledger/* 2>/dev/null | wc -l)"
before=$SECONDS
python "$REPOSITORY/infra/docker/leave_cluster.py" --grace-s 100
say "driver left in $((SECONDS - before)) s"
sleep 1
say "exit code $(ray job status --address $address pretrain 2>&1 | grep -oE 'exit code [0-9]+' | head -1)"
say "checkpoints after $(ls -d /tmp/store/runs/pretrain/ledger/* 2>/dev/null | wc -l)"

before=$SECONDS
python "$REPOSITORY/infra/docker/leave_cluster.py" --grace-s 100
say "node left in $((SECONDS - before)) s"
python - <<'PYTHON'
import ray
ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
for node in sorted(ray.nodes(), key=lambda node: node["Alive"]):
    print("FACT node", "alive" if node["Alive"] else "dead", node.get("DeathReason"), node.get("DeathReasonMessage"))
PYTHON
ray stop --force >/dev/null 2>&1
