#!/bin/sh
# Start the S3 server: the JuiceFS gateway, whose files are in S3_DATA and whose names are in S3_META.
# SECRETS has s3-user and s3-secret. Its gateway ignores put-if-absent: run one writer at a time (docs/single-server.md).
set -eu
: "${S3_LISTEN:?}" "${S3_META:?}" "${S3_DATA:?}" "${S3_CACHE:?}" "${SECRETS:?}"
umask 077
MINIO_ROOT_USER=$(cat "$SECRETS/s3-user") MINIO_ROOT_PASSWORD=$(cat "$SECRETS/s3-secret")
export MINIO_ROOT_USER MINIO_ROOT_PASSWORD
juicefs status "$S3_META" >/dev/null 2>&1 || juicefs format --storage file --bucket "$S3_DATA" "$S3_META" cytoray
exec juicefs gateway --no-banner --multi-buckets --keep-etag --no-usage-report --log "$S3_CACHE/gateway.log" \
  --cache-dir "$S3_CACHE" "$S3_META" "$S3_LISTEN"
