# Sizes, variables that are refused, outputs, and the cost table against arithmetic by hand.

# Values of mocks are known when planning, so that no run has to apply, which takes longer.
mock_provider "aws" {
  source          = "./tests/mock"
  override_during = plan
}

variables {
  region          = "us-east-1"
  bucket_prefix   = "lab"
  admin_role_arns = ["arn:aws:iam::123456789012:role/Admins"]
}

run "node_groups" {
  command = plan
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.main : group.scaling_config[0].min_size == 0 if var.node_groups[name].gpu]) && aws_eks_node_group.main["gpu"].scaling_config[0].desired_size == 0
    error_message = "GPU nodes run when nothing needs them."
  }
  assert {
    condition     = aws_eks_node_group.main["gpu"].ami_type == "AL2023_x86_64_NVIDIA" && try(one(aws_eks_node_group.main["gpu"].taint).key, "") == "nvidia.com/gpu"
    error_message = "GPU nodes have no driver, or other pods run on them."
  }
  assert {
    condition     = aws_eks_node_group.main["spot"].capacity_type == "SPOT" && try(one(aws_eks_node_group.main["spot"].taint).key, "") == "cytoray/spot" && length(aws_eks_node_group.main["cpu"].taint) == 0
    error_message = "Pods that must not be interrupted can run on spot instances."
  }
  assert {
    condition     = length(aws_nat_gateway.main) == 1 && length(aws_route.nat) == 2
    error_message = "One NAT gateway for all zones by default."
  }
}

run "three_zones_have_a_gateway_each" {
  command = plan
  variables {
    num_zones          = 3
    single_nat_gateway = false
    flow_logs          = false
  }
  assert {
    condition     = length(aws_nat_gateway.main) == 3 && length(aws_subnet.private) == 3 && length(aws_flow_log.main) == 0
    error_message = "Three zones, three gateways, no flow log."
  }
  assert {
    condition     = aws_subnet.private["us-east-1c"].cidr_block == "10.40.128.0/18" && aws_subnet.public["us-east-1a"].cidr_block == "10.40.192.0/22"
    error_message = "Other addresses than planned."
  }
}

run "api_from_the_office" {
  command = plan
  variables {
    public_endpoint_cidrs = ["203.0.113.0/24"]
  }
  assert {
    condition     = aws_eks_cluster.main.vpc_config[0].endpoint_public_access && aws_eks_cluster.main.vpc_config[0].public_access_cidrs == toset(["203.0.113.0/24"])
    error_message = "The API cannot be reached from the addresses named."
  }
}

run "outputs" {
  command = plan
  assert {
    condition     = output.store == "s3://lab-store" && output.artifact_location == "s3://lab-models/mlflow" && output.jobs_folder == "s3://lab-store/jobs"
    error_message = "Places of the configuration."
  }
  assert {
    condition     = output.mlflow_uri == "http://mlflow.cytoray.svc:5000"
    error_message = "Address of MLflow."
  }
  assert {
    condition     = toset(keys(output.service_account_roles)) == toset(["cytoray:cytoray-ingest", "cytoray:cytoray-train", "cytoray:cytoray-serve", "cytoray:mlflow", "kube-system:cluster-autoscaler", "kube-system:ebs-csi-controller-sa"])
    error_message = "Roles for the service accounts."
  }
  assert {
    condition     = toset(keys(output.image_repositories)) == toset(["cytoray-cpu", "cytoray-gpu", "mlflow"]) && output.database.port == 5432
    error_message = "Repositories and database."
  }
  assert {
    condition     = output.node_pools.gpu.gpu && output.node_pools.spot.spot && !output.node_pools.cpu.gpu
    error_message = "Pools."
  }
  assert { # the names of infra/aws/account.env; it stands beside this folder, not below it
    condition     = output.account_env == <<-TEXT
      account=123456789012
      artifacts=s3://lab-models/mlflow
      database=mlflow@mlflow.example.us-east-1.rds.amazonaws.com:5432
      database-secret=arn:aws:secretsmanager:us-east-1:123456789012:secret:rds-mocked
      region=us-east-1
      registry=123456789012.dkr.ecr.us-east-1.amazonaws.com
      store=s3://lab-store
    TEXT
    error_message = "What overlays are filled in from."
  }
}

run "cost_by_hand" {
  command = plan
  variables {
    single_nat_gateway = false
    node_groups = {
      cpu = { instance_types = ["a.small"], min_size = 2, max_size = 4, disk_gib = 100 }
      gpu = { instance_types = ["a.gpu"], max_size = 2, disk_gib = 100, gpu = true }
      low = { instance_types = ["a.small"], max_size = 10, disk_gib = 50, capacity_type = "SPOT" }
    }
    usage = { node_hours = { gpu = 73, low = 730 }, store_gib = 2000, nat_gib = 0, log_gib = 10 }
    prices = {
      as_of         = "2030-01"
      source        = "made up for this test"
      instance_hour = { "a.small" = 0.5, "a.gpu" = 10, "db.t4g.medium" = 0.1 }
      spot_share    = 0.4
    }
  }
  assert { # 2 x 730 x 0.5; 73 x 10; 730 x 0.5 x 0.4
    condition     = output.cost.usd_per_month["nodes cpu (a.small)"] == 730 && output.cost.usd_per_month["nodes gpu (a.gpu)"] == 730 && output.cost.usd_per_month["nodes low (a.small)"] == 146
    error_message = "Nodes."
  }
  assert { # 2 x 100 x 0.08 + 0.1 x 100 x 0.08 + 50 x 0.08
    condition     = output.cost.usd_per_month["disks cpu"] == 16 && output.cost.usd_per_month["disks gpu"] == 0.8 && output.cost.usd_per_month["disks low"] == 4
    error_message = "Disks."
  }
  assert { # nodes 1606, disks 20.8, EKS 73, NAT 2 x 36.5, S3 46, database 73 + 5.75, keys 2 + 1.6, logs 5
    condition     = output.cost.total_usd_per_month == 1906.15 && output.cost.total_usd_per_hour == 2.6112
    error_message = "Sum: ${output.cost.total_usd_per_month} a month, ${output.cost.total_usd_per_hour} an hour."
  }
  assert { # 4 x 0.5 + 2 x 10 + 10 x 0.2
    condition     = output.cost.max_nodes_usd_per_hour == 24
    error_message = "Everything at its maximum."
  }
  assert {
    condition     = output.cost.prices == "2030-01: made up for this test"
    error_message = "The table does not say where its prices come from."
  }
}

run "an_unknown_price_is_reported" {
  command = plan
  variables {
    node_groups = { cpu = { instance_types = ["z9.huge"], min_size = 1, max_size = 2 } }
  }
  expect_failures = [check.prices_are_known]
}

run "an_idle_gpu_is_refused" {
  command = plan
  variables {
    node_groups = {
      cpu = { instance_types = ["m6i.2xlarge"], min_size = 1, max_size = 2 }
      gpu = { instance_types = ["g5.2xlarge"], min_size = 1, max_size = 2, gpu = true }
    }
  }
  expect_failures = [var.node_groups]
}

run "no_node_for_the_head_is_refused" {
  command = plan
  variables {
    node_groups = { spot = { instance_types = ["m6i.2xlarge"], capacity_type = "SPOT", min_size = 1, max_size = 2 } }
  }
  expect_failures = [var.node_groups]
}

run "the_whole_internet_is_refused" {
  command = plan
  variables {
    public_endpoint_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.public_endpoint_cidrs]
}

run "bad_names_are_refused" {
  command = plan
  variables {
    name            = "Cytoray_1"
    region          = "virginia"
    bucket_prefix   = "Lab_Bucket"
    source_buckets  = ["s3://lab/h5ad"]
    admin_role_arns = []
    vpc_cidr        = "10.0.0.0/28"
  }
  expect_failures = [var.name, var.region, var.bucket_prefix, var.source_buckets, var.admin_role_arns, var.vpc_cidr]
}

run "a_registry_without_backups_is_refused" {
  command = plan
  variables {
    database        = { backup_days = 0 }
    noncurrent_days = 1
    num_zones       = 1
  }
  expect_failures = [var.database, var.noncurrent_days, var.num_zones]
}
