# What a deployment has to say, and what it may change. `terraform.tfvars.example` has a small and a large one.

variable "name" {
  description = "Prefix of every name in the account; also the name of the EKS cluster."
  type        = string
  default     = "cytoray"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "name: 2 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: for example us-east-1 or eu-central-1."
  }
}

variable "tags" {
  description = "Further tags of every resource."
  type        = map(string)
  default     = {}
}

# --- network -----------------------------------------------------------------------------------------------------------

variable "vpc_cidr" {
  description = "Addresses of the VPC: a /16 to a /20, as every pod has an address of its own."
  type        = string
  default     = "10.40.0.0/16"
  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(tonumber(split("/", var.vpc_cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.vpc_cidr)[1]), 99) <= 20
    error_message = "vpc_cidr: an IPv4 block from /16 to /20, for example 10.40.0.0/16."
  }
}

variable "num_zones" {
  description = "Availability zones. EKS and RDS need two at least."
  type        = number
  default     = 2
  validation {
    condition     = contains([2, 3], var.num_zones)
    error_message = "num_zones: 2 or 3."
  }
}

variable "single_nat_gateway" {
  description = "One NAT gateway for all zones: cheaper; if its zone fails, no node reaches the internet."
  type        = bool
  default     = true
}

variable "flow_logs" {
  description = "Record accepted and refused connections of the VPC in CloudWatch."
  type        = bool
  default     = true
}

variable "log_retention_days" {
  description = "Days until logs of the control plane and of the network are deleted."
  type        = number
  default     = 90
  validation {
    condition     = contains([30, 60, 90, 180, 365], var.log_retention_days)
    error_message = "log_retention_days: 30, 60, 90, 180 or 365."
  }
}

# --- cluster -----------------------------------------------------------------------------------------------------------

variable "kubernetes_version" {
  description = "Version of EKS."
  type        = string
  default     = "1.33"
  validation {
    condition     = can(regex("^1\\.(3[1-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: 1.31 or newer, in quotes."
  }
}

variable "public_endpoint_cidrs" {
  description = "Addresses from which the Kubernetes API can be reached over the internet. Empty: only from within the VPC."
  type        = list(string)
  default     = []
  validation {
    condition = alltrue([
      for block in var.public_endpoint_cidrs :
      can(cidrhost(block, 0)) && try(tonumber(split("/", block)[1]), 0) >= 16
    ])
    error_message = "public_endpoint_cidrs: IPv4 blocks of /16 or smaller; the whole internet is not allowed."
  }
}

variable "admin_role_arns" {
  description = "IAM roles or users that administer the cluster. Who runs Terraform gets no rights in Kubernetes by that."
  type        = set(string)
  validation {
    condition     = length(var.admin_role_arns) > 0 && alltrue([for arn in var.admin_role_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "admin_role_arns: at least one, as arn:aws:iam::ACCOUNT:role/NAME."
  }
}

variable "node_groups" {
  description = <<-TEXT
    Groups of nodes. A group with `gpu` has no node unless something runs on it (min_size 0), and a taint that keeps other pods away;
    so has a group of SPOT instances. The label cytoray/pool of its nodes is the name of the group.
  TEXT
  type = map(object({
    instance_types = list(string)
    capacity_type  = optional(string, "ON_DEMAND")
    min_size       = optional(number, 0)
    max_size       = number
    disk_gib       = optional(number, 100)
    gpu            = optional(bool, false)
  }))
  default = {
    cpu  = { instance_types = ["m6i.2xlarge"], min_size = 2, max_size = 6 }
    spot = { instance_types = ["m6i.4xlarge", "m6a.4xlarge", "m5.4xlarge"], capacity_type = "SPOT", max_size = 16, disk_gib = 200 }
    gpu  = { instance_types = ["g5.12xlarge"], max_size = 4, disk_gib = 300, gpu = true }
  }
  validation {
    condition     = alltrue([for group in var.node_groups : contains(["ON_DEMAND", "SPOT"], group.capacity_type)])
    error_message = "node_groups: capacity_type is ON_DEMAND or SPOT."
  }
  validation {
    condition     = alltrue([for group in var.node_groups : group.min_size == 0 if group.gpu])
    error_message = "node_groups: a GPU group has min_size 0, as an idle GPU costs as much as a busy one."
  }
  validation {
    condition     = alltrue([for group in var.node_groups : group.max_size >= 1 && group.max_size >= group.min_size && group.min_size >= 0])
    error_message = "node_groups: 0 <= min_size <= max_size, and max_size is at least 1."
  }
  validation {
    condition     = anytrue([for group in var.node_groups : group.min_size >= 1 && !group.gpu && group.capacity_type == "ON_DEMAND"])
    error_message = "node_groups: one on-demand group without GPUs needs min_size 1 or more; Ray's head, MLflow and the operators run there."
  }
  validation {
    condition     = alltrue([for group in var.node_groups : length(group.instance_types) > 0 && group.disk_gib >= 50])
    error_message = "node_groups: at least one instance type, and disk_gib of 50 or more (Ray spills to the disk)."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of cytoray; its service accounts may assume the roles of this folder."
  type        = string
  default     = "cytoray"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,62}$", var.namespace))
    error_message = "namespace: a Kubernetes name."
  }
}

# --- storage -----------------------------------------------------------------------------------------------------------

variable "bucket_prefix" {
  description = "Beginning of the buckets' names, which are unique in the world: PREFIX-store and PREFIX-models."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{2,50}$", var.bucket_prefix))
    error_message = "bucket_prefix: 3 to 51 lower-case letters, digits and hyphens."
  }
}

variable "source_buckets" {
  description = "Existing buckets with cells to ingest. They are read and never written."
  type        = set(string)
  default     = []
  validation {
    condition     = alltrue([for bucket in var.source_buckets : can(regex("^[a-z0-9][a-z0-9.-]{2,62}$", bucket))])
    error_message = "source_buckets: names of buckets, without s3:// and without a path."
  }
}

variable "noncurrent_days" {
  description = "Days for which a deleted or replaced object can be brought back."
  type        = number
  default     = 30
  validation {
    condition     = var.noncurrent_days >= 7
    error_message = "noncurrent_days: 7 or more, so that a mistake of Friday can be undone on Monday."
  }
}

# --- database ----------------------------------------------------------------------------------------------------------

variable "database" {
  description = "PostgreSQL of MLflow."
  type = object({
    instance_class      = optional(string, "db.t4g.medium")
    engine_version      = optional(string, "16")
    storage_gib         = optional(number, 50)
    max_storage_gib     = optional(number, 200)
    multi_az            = optional(bool, false)
    backup_days         = optional(number, 14)
    deletion_protection = optional(bool, true)
  })
  default = {}
  validation {
    condition     = var.database.backup_days >= 7 && var.database.backup_days <= 35
    error_message = "database: backup_days from 7 to 35."
  }
  validation {
    condition     = var.database.storage_gib >= 20 && var.database.max_storage_gib > var.database.storage_gib
    error_message = "database: storage_gib of 20 or more, and max_storage_gib above it."
  }
}
