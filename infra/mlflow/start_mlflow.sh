#!/bin/sh
# Start MLflow's server behind its auth app, on PostgreSQL and S3. The same script runs in Kubernetes and on a single server.
#   MLFLOW_DATABASE      postgresql+psycopg2://USER@HOST:PORT/NAME[?sslmode=…], without a password
#   MLFLOW_ARTIFACTS     s3://BUCKET/PREFIX of the files of new experiments
#   SECRETS              folder with mlflow-admin, mlflow-session and database-password, each a file with one line
#   RUNTIME              folder of this process, 0700, in memory
#   MLFLOW_SERVER_ALLOWED_HOSTS   names by which clients call it
# Passwords stay out of arguments and, but for MLflow's own two variables, of the environment: PostgreSQL's is in a file that libpq
# reads at each new connection, so a rotated password needs no restart.
set -eu
: "${MLFLOW_DATABASE:?}" "${MLFLOW_ARTIFACTS:?}" "${SECRETS:?}" "${RUNTIME:?}" "${MLFLOW_SERVER_ALLOWED_HOSTS:?}"
umask 077

write_password() {  # ':' and '\' have a meaning in libpq's file
  printf '*:*:*:*:%s\n' "$(sed 's/[:\\]/\\&/g' "$SECRETS/database-password")" > "$RUNTIME/pgpass.new"
  mv "$RUNTIME/pgpass.new" "$RUNTIME/pgpass"
}
write_password
while sleep "${REREAD_S:-30}"; do write_password; done &

case $MLFLOW_DATABASE in *\?*) glue='&' ;; *) glue='?' ;; esac
database="$MLFLOW_DATABASE${glue}passfile=$RUNTIME/pgpass"
# The cache: each check of a password takes half a second of CPU by design. A changed password may be accepted for so long.
cat > "$RUNTIME/auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = $database
admin_username = admin
auth_cache_ttl_seconds = 60
INI

export MLFLOW_AUTH_CONFIG_PATH="$RUNTIME/auth.ini"
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$SECRETS/mlflow-admin")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$SECRETS/mlflow-session")
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_SERVER_ALLOWED_HOSTS MLFLOW_SERVER_X_FRAME_OPTIONS=DENY
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_MODEL_CATALOG_URI="" MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK=true
exec python -m mlflow server --app-name basic-auth --host "${LISTEN:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" \
  --backend-store-uri "$database" --default-artifact-root "$MLFLOW_ARTIFACTS" --no-serve-artifacts
