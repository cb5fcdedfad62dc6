#!/bin/sh
# Deploy the service of SERVE_CONFIG on the running head, and wait until Ray Serve has accepted it.
set -eu
: "${RAY_DASHBOARD:?}" "${SERVE_CONFIG:?}" "${SECRETS:?}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SECRETS/ray-token"
cytoray config check "$SERVE_CONFIG"
exec serve deploy --address "http://$RAY_DASHBOARD" "$SERVE_CONFIG"
