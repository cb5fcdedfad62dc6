#!/bin/sh
# Write random values into the secrets of MLflow that have none yet: fill_secrets.sh NAME REGION. Values are not printed.
set -eu
name=${1:?name of the deployment, as the variable `name`} region=${2:?region}
for secret in mlflow-admin mlflow-session; do
  if aws secretsmanager get-secret-value --region "$region" --secret-id "$name/$secret" >/dev/null 2>&1; then
    echo "$name/$secret has a value already"
  else
    value=$(aws secretsmanager get-random-password --region "$region" --password-length 40 --exclude-punctuation --query RandomPassword --output text)
    # From a file, as arguments of processes can be read by everybody on this machine.
    (umask 077; printf %s "$value" > "${TMPDIR:-/tmp}/cytoray-secret.$$")
    aws secretsmanager put-secret-value --region "$region" --secret-id "$name/$secret" --secret-string "file://${TMPDIR:-/tmp}/cytoray-secret.$$" >/dev/null
    rm -f "${TMPDIR:-/tmp}/cytoray-secret.$$"
    echo "$name/$secret is written"
  fi
done
