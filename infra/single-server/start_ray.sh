#!/bin/sh
# Start Ray's head on loopback, with the token of SECRETS/ray-token, and stay in the foreground.
set -eu
: "${RAY_PORT:?}" "${RAY_DASHBOARD:?}" "${RAY_METRICS_PORT:?}" "${SECRETS:?}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SECRETS/ray-token" RAY_USAGE_STATS_ENABLED=0
AWS_ACCESS_KEY_ID=$(cat "$SECRETS/s3-user") AWS_SECRET_ACCESS_KEY=$(cat "$SECRETS/s3-secret")
MLFLOW_TRACKING_PASSWORD=$(cat "$SECRETS/mlflow-user")
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_TRACKING_PASSWORD
# shellcheck disable=SC2086  # options of this machine, several words
exec ray start --head --block --node-ip-address 127.0.0.1 --port "$RAY_PORT" --disable-usage-stats \
  --dashboard-host "${RAY_DASHBOARD%:*}" --dashboard-port "${RAY_DASHBOARD#*:}" --metrics-export-port "$RAY_METRICS_PORT" ${RAY_OPTIONS:-}
