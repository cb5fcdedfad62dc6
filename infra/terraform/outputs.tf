# What infra/kuberay, infra/mlflow and cytoray's configuration need: `terraform output -json`.

output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.main.name
}

output "region" {
  description = "Region of everything."
  value       = var.region
}

output "store" {
  description = "`store:` of cytoray's configuration."
  value       = "s3://${aws_s3_bucket.main["store"].bucket}"
}

output "artifact_location" {
  description = "`tracking.artifact_location` of cytoray's configuration, and MLflow's artifact root."
  value       = "s3://${aws_s3_bucket.main["models"].bucket}/mlflow"
}

output "jobs_folder" {
  description = "`jobs.folder` of the service."
  value       = "s3://${aws_s3_bucket.main["store"].bucket}/jobs"
}

output "mlflow_uri" {
  description = "`tracking.uri` within the cluster."
  value       = "http://mlflow.${var.namespace}.svc:5000"
}

output "service_account_roles" {
  description = "Service account as namespace:name -> role, for the annotation eks.amazonaws.com/role-arn."
  value       = { for key, account in local.service_accounts : account => aws_iam_role.service_account[key].arn }
}

output "image_repositories" {
  description = "Where images are pushed to and pulled from."
  value       = { for key, repository in aws_ecr_repository.main : key => repository.repository_url }
}

output "database" {
  description = "Address of PostgreSQL, and the secret with its user and password."
  value = {
    host       = aws_db_instance.mlflow.address
    port       = aws_db_instance.mlflow.port
    name       = aws_db_instance.mlflow.db_name
    secret_arn = aws_db_instance.mlflow.master_user_secret[0].secret_arn
  }
}

output "account_env" {
  description = "infra/aws/account.env, from which infra/kuberay and infra/mlflow are filled in."
  value = join("", [for key, value in {
    account         = data.aws_caller_identity.current.account_id
    region          = var.region
    registry        = split("/", aws_ecr_repository.main["mlflow"].repository_url)[0]
    store           = "s3://${aws_s3_bucket.main["store"].bucket}"
    artifacts       = "s3://${aws_s3_bucket.main["models"].bucket}/mlflow"
    database        = "${aws_db_instance.mlflow.username}@${aws_db_instance.mlflow.address}:${aws_db_instance.mlflow.port}"
    database-secret = aws_db_instance.mlflow.master_user_secret[0].secret_arn
  } : "${key}=${value}\n"])
}

output "secrets" {
  description = "Names of the secrets in Secrets Manager."
  value       = { for key, secret in aws_secretsmanager_secret.main : key => secret.name }
}

output "node_pools" {
  description = "Values of the node label cytoray/pool, and the taints that pods of each have to tolerate."
  value = {
    for name, group in var.node_groups : name => {
      gpu  = group.gpu
      spot = group.capacity_type == "SPOT"
    }
  }
}
