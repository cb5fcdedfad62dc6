# Secrets without values: values never stand in Terraform's state. `infra/terraform/fill_secrets.sh` writes the first ones.
# (Ephemeral resources could make them here, but `terraform test` of 1.11 cannot mock those.) PostgreSQL's password is RDS's.

locals {
  secrets = {
    mlflow-admin   = "Password of MLflow's user admin"
    mlflow-session = "Key by which MLflow signs its sessions"
    api-keys       = "keys.json of the service, written by `cytoray keys new`"
  }
}

resource "aws_secretsmanager_secret" "main" {
  for_each    = local.secrets
  name        = "${var.name}/${each.key}"
  description = each.value
  kms_key_id  = aws_kms_key.data.arn
}
