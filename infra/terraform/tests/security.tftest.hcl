# Nothing is public, everything is encrypted, and each role has its prefixes and its actions.

mock_provider "aws" {
  source = "./tests/mock"
}

variables {
  region          = "us-east-1"
  bucket_prefix   = "lab"
  admin_role_arns = ["arn:aws:iam::123456789012:role/Admins"]
  source_buckets  = ["lab-h5ad"]
}

# One run for all, as each run plans and applies once more.
run "closed_by_default" {
  # --- buckets
  assert {
    condition = alltrue([for block in aws_s3_bucket_public_access_block.main :
    block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets])
    error_message = "A bucket can become public."
  }
  assert {
    condition     = toset(keys(aws_s3_bucket_public_access_block.main)) == toset(keys(aws_s3_bucket.main)) && length(aws_s3_bucket.main) == 2
    error_message = "A bucket has no public access block."
  }
  assert {
    condition     = alltrue([for versioning in aws_s3_bucket_versioning.main : versioning.versioning_configuration[0].status == "Enabled"]) && length(aws_s3_bucket_versioning.main) == 2
    error_message = "A bucket keeps no versions."
  }
  assert {
    condition = alltrue([for encryption in aws_s3_bucket_server_side_encryption_configuration.main : alltrue([
      for rule in encryption.rule : rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms" && rule.bucket_key_enabled
    ])]) && length(aws_s3_bucket_server_side_encryption_configuration.main) == 2
    error_message = "A bucket is not encrypted with our key."
  }
  assert {
    condition     = alltrue([for controls in aws_s3_bucket_ownership_controls.main : controls.rule[0].object_ownership == "BucketOwnerEnforced"])
    error_message = "Objects may have ACLs."
  }
  assert {
    condition     = alltrue([for bucket in aws_s3_bucket.main : !bucket.force_destroy])
    error_message = "terraform destroy would delete a bucket that holds data."
  }
  assert {
    condition = alltrue([for policy in aws_s3_bucket_policy.main : alltrue([
      for statement in jsondecode(policy.policy).Statement : statement.Effect == "Deny"
    ])])
    error_message = "A bucket policy allows something; roles do that."
  }
  assert {
    condition = alltrue([for policy in aws_s3_bucket_policy.main : anytrue([
      for statement in jsondecode(policy.policy).Statement : try(statement.Condition.Bool["aws:SecureTransport"], "") == "false" && statement.Action == "s3:*" && length(statement.Resource) == 2
    ])])
    error_message = "A bucket answers plain HTTP."
  }

  # --- lifecycle
  assert {
    condition = alltrue([for lifecycle in aws_s3_bucket_lifecycle_configuration.main : anytrue([
      for rule in lifecycle.rule : try(rule.abort_incomplete_multipart_upload[0].days_after_initiation, 0) == 7 && rule.status == "Enabled"
    ])])
    error_message = "Interrupted uploads are kept for ever."
  }
  assert {
    condition = alltrue(flatten([for lifecycle in aws_s3_bucket_lifecycle_configuration.main : [
      for rule in lifecycle.rule : [for expiration in rule.expiration : try(expiration.days, 0) == null || try(expiration.days, 0) == 0]
    ]]))
    error_message = "Committed data would expire by age."
  }
  assert {
    condition = alltrue([for lifecycle in aws_s3_bucket_lifecycle_configuration.main : anytrue([
      for rule in lifecycle.rule : try(rule.noncurrent_version_expiration[0].noncurrent_days, 0) == 30
    ])])
    error_message = "Old versions are kept for ever, or not for 30 days."
  }

  # --- cluster
  assert {
    condition     = !aws_eks_cluster.main.vpc_config[0].endpoint_public_access && aws_eks_cluster.main.vpc_config[0].endpoint_private_access
    error_message = "The Kubernetes API is on the internet by default."
  }
  assert {
    condition     = toset(aws_eks_cluster.main.enabled_cluster_log_types) == toset(["api", "audit", "authenticator", "controllerManager", "scheduler"])
    error_message = "A log of the control plane is missing."
  }
  assert {
    condition     = aws_eks_cluster.main.encryption_config[0].resources == toset(["secrets"]) && aws_eks_cluster.main.encryption_config[0].provider[0].key_arn == aws_kms_key.cluster.arn
    error_message = "Secrets of Kubernetes are not encrypted with our key."
  }
  assert {
    condition     = aws_eks_cluster.main.access_config[0].authentication_mode == "API" && !aws_eks_cluster.main.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "Who runs Terraform becomes an administrator for ever."
  }
  assert {
    condition     = aws_kms_key.cluster.enable_key_rotation && aws_kms_key.data.enable_key_rotation
    error_message = "A key is never rotated."
  }
  assert {
    condition     = jsondecode(aws_eks_addon.network.configuration_values).enableNetworkPolicy == "true"
    error_message = "Network policies are not enforced."
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "Pods can take the rights of their node."
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : alltrue([for device in template.block_device_mappings : device.ebs[0].encrypted == "true"])])
    error_message = "A disk of a node is not encrypted."
  }

  # --- network
  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.cidr_ipv4 == null && aws_vpc_security_group_ingress_rule.database.cidr_ipv6 == null
    error_message = "The database accepts connections from addresses, not only from the cluster."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.referenced_security_group_id == "sg-0123456789abcdef0" && aws_vpc_security_group_ingress_rule.database.from_port == 5432 && aws_vpc_security_group_ingress_rule.database.to_port == 5432
    error_message = "The database is open to more than PostgreSQL from the cluster."
  }
  assert {
    condition     = length(aws_default_security_group.closed.ingress) == 0 && length(aws_default_security_group.closed.egress) == 0
    error_message = "The default security group is open."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.public : !subnet.map_public_ip_on_launch])
    error_message = "Machines get public addresses."
  }
  assert {
    condition     = length(distinct(concat([for s in aws_subnet.public : s.cidr_block], [for s in aws_subnet.private : s.cidr_block]))) == 4
    error_message = "Subnets share addresses."
  }
  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && aws_vpc_endpoint.s3.service_name == "com.amazonaws.us-east-1.s3" && length(aws_vpc_endpoint.s3.route_table_ids) >= 1
    error_message = "Cells would go through NAT."
  }
  assert {
    condition     = aws_flow_log.main[0].traffic_type == "ALL"
    error_message = "Refused connections are not recorded."
  }

  # --- database
  assert {
    condition     = aws_db_instance.mlflow.storage_encrypted && !aws_db_instance.mlflow.publicly_accessible && aws_db_instance.mlflow.deletion_protection
    error_message = "The database is public, readable, or deleted by a slip."
  }
  assert {
    condition     = aws_db_instance.mlflow.manage_master_user_password && aws_db_instance.mlflow.password == null
    error_message = "The password stands in the state."
  }
  assert {
    condition     = aws_db_instance.mlflow.backup_retention_period >= 7 && !aws_db_instance.mlflow.skip_final_snapshot && !aws_db_instance.mlflow.delete_automated_backups
    error_message = "The registry can be lost."
  }
  assert {
    condition     = anytrue([for parameter in aws_db_parameter_group.main.parameter : parameter.name == "rds.force_ssl" && parameter.value == "1"])
    error_message = "The database accepts connections without TLS."
  }

  # --- images
  assert {
    condition     = alltrue([for repository in aws_ecr_repository.main : repository.image_tag_mutability == "IMMUTABLE" && repository.image_scanning_configuration[0].scan_on_push && !repository.force_delete])
    error_message = "A tag can be moved, or an image is not scanned."
  }

  # --- policies
  assert {
    condition     = toset(keys(local.statements)) == toset(["ingest", "train", "serve", "mlflow"])
    error_message = "A role is missing, or one has been added without a test."
  }
  assert {
    condition = alltrue(flatten([for name, policy in aws_iam_role_policy.service_account : [
      for statement in jsondecode(policy.policy).Statement : [for action in statement.Action : !strcontains(action, "*")]
    ]]))
    error_message = "A policy has an action with *."
  }
  assert {
    condition = alltrue(flatten([for name, policy in aws_iam_role_policy.service_account : [
      for statement in jsondecode(policy.policy).Statement : [for resource in statement.Resource : resource != "*"]
    ] if name != "autoscaler"]))
    error_message = "A policy of cytoray is about every resource."
  }
  assert {
    condition = alltrue(flatten([for statement in jsondecode(aws_iam_role_policy.service_account["autoscaler"].policy).Statement : [
      for action in statement.Action : can(regex("^(autoscaling|ec2):(Describe|Get)", action))
    ] if contains(statement.Resource, "*")]))
    error_message = "The autoscaler may change what is not its own."
  }
  assert {
    condition     = { for statement in local.statements["ingest"] : statement.Sid => statement.Resource if startswith(statement.Sid, "W") || startswith(statement.Sid, "Del") } == { Write = ["arn:aws:s3:::lab-store/corpora/*"], Delete = ["arn:aws:s3:::lab-store/corpora/*"] }
    error_message = "Ingest writes elsewhere than below corpora/."
  }
  assert {
    condition     = toset([for statement in local.statements["ingest"] : statement.Resource if statement.Sid == "ReadSources"][0]) == toset(["arn:aws:s3:::lab-h5ad/*"])
    error_message = "Ingest cannot read its sources."
  }
  assert {
    condition     = !strcontains(jsonencode([for statement in local.statements["ingest"] : statement if startswith(statement.Sid, "Write") || startswith(statement.Sid, "Delete")]), "h5ad")
    error_message = "Ingest may change its sources."
  }
  assert {
    condition     = toset([for statement in local.statements["train"] : statement.Resource if statement.Sid == "Write"][0]) == toset(["arn:aws:s3:::lab-store/runs/*", "arn:aws:s3:::lab-models/mlflow/*"])
    error_message = "Training writes elsewhere than below runs/ and mlflow/."
  }
  assert {
    condition     = toset([for statement in local.statements["train"] : statement.Resource if statement.Sid == "Delete"][0]) == toset(["arn:aws:s3:::lab-store/runs/*"])
    error_message = "Training may delete corpora or registered models."
  }
  assert {
    condition     = toset([for statement in local.statements["serve"] : statement.Resource if statement.Sid == "Write"][0]) == toset(["arn:aws:s3:::lab-store/jobs/*"])
    error_message = "The service may change models or corpora."
  }
  assert {
    condition     = length([for statement in local.statements["mlflow"] : statement if strcontains(jsonencode(statement.Resource), "lab-store")]) == 0
    error_message = "MLflow may see corpora or checkpoints."
  }
  assert {
    condition = alltrue([for role in ["ingest", "train"] : length([
      for statement in local.statements[role] : statement if anytrue([for action in statement.Action : startswith(action, "secretsmanager:")])
    ]) == 0])
    error_message = "Ingest or training may read secrets."
  }
  assert {
    condition = alltrue(flatten([for role, statements in local.statements : [
      for statement in statements : can(statement.Condition.StringEquals["kms:ViaService"]) if anytrue([for action in statement.Action : startswith(action, "kms:")])
    ]]))
    error_message = "A role may use the key outside of S3 and Secrets Manager."
  }
  assert {
    condition = alltrue(flatten([for role, statements in local.statements : [
      for statement in statements : can(statement.Condition.StringLike["s3:prefix"]) if contains(statement.Action, "s3:ListBucket") && statement.Sid != "ListSources"
    ]]))
    error_message = "A role may list a whole bucket of ours."
  }
  assert {
    condition = alltrue([for key, role in aws_iam_role.service_account : alltrue([
      for statement in jsondecode(role.assume_role_policy).Statement :
      statement.Condition.StringEquals["oidc.eks.us-east-1.amazonaws.com/id/ABC123:sub"] == "system:serviceaccount:${local.service_accounts[key]}" &&
      statement.Condition.StringEquals["oidc.eks.us-east-1.amazonaws.com/id/ABC123:aud"] == "sts.amazonaws.com"
    ])])
    error_message = "A role can be assumed by another service account."
  }
  assert {
    condition     = local.service_accounts["train"] == "cytoray:cytoray-train" && local.service_accounts["mlflow"] == "cytoray:mlflow"
    error_message = "The service accounts have other names than in infra/kuberay and infra/mlflow."
  }
}
