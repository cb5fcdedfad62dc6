# What it costs, by price: a table per month and per hour. Prices are assumptions; put in those of your region and contract.

variable "prices" {
  description = <<-TEXT
    USD. `source` and `as_of` are printed beside the table. Instance prices per hour on demand in us-east-1; a group of SPOT instances costs
    `spot_share` of them. They were entered by hand from AWS's public price pages and are not fetched: check them before you rely on the total.
  TEXT
  type = object({
    as_of  = string
    source = string
    instance_hour = optional(map(number), {
      "m5.4xlarge"    = 0.768
      "m6a.4xlarge"   = 0.6912
      "m6i.2xlarge"   = 0.384
      "m6i.4xlarge"   = 0.768
      "m6i.8xlarge"   = 1.536
      "r6i.4xlarge"   = 1.008
      "g5.2xlarge"    = 1.212
      "g5.12xlarge"   = 5.672
      "g5.48xlarge"   = 16.288
      "p4d.24xlarge"  = 21.958
      "p5.48xlarge"   = 55.04
      "db.t4g.medium" = 0.065
      "db.m7g.large"  = 0.168
    })
    spot_share           = optional(number, 0.4)
    eks_hour             = optional(number, 0.10)
    nat_hour             = optional(number, 0.045)
    nat_gib              = optional(number, 0.045)
    s3_gib_month         = optional(number, 0.023)
    ebs_gib_month        = optional(number, 0.08)
    database_gib_month   = optional(number, 0.115)
    kms_key_month        = optional(number, 1.0)
    secret_month         = optional(number, 0.40)
    public_address_hour  = optional(number, 0.005)
    cloudwatch_gib_month = optional(number, 0.50)
  })
  default = {
    as_of  = "2025-11"
    source = "public price pages of AWS, us-east-1, on demand, without taxes and discounts; entered by hand"
  }
  validation {
    condition     = can(regex("^20[0-9]{2}-(0[1-9]|1[0-2])$", var.prices.as_of)) && length(var.prices.source) > 10
    error_message = "prices: as_of as YYYY-MM, and the source of the prices."
  }
  validation {
    condition     = var.prices.spot_share > 0 && var.prices.spot_share <= 1 && alltrue([for price in values(var.prices.instance_hour) : price > 0])
    error_message = "prices: spot_share above 0 and up to 1, and prices above 0."
  }
}

variable "usage" {
  description = "What the table reckons with: node-hours per group and month (default: the smallest number of nodes all month), GiB stored and moved."
  type = object({
    node_hours = optional(map(number), {})
    store_gib  = optional(number, 1000)
    nat_gib    = optional(number, 100)
    log_gib    = optional(number, 20)
  })
  default = {}
  validation {
    condition     = alltrue([for hours in values(var.usage.node_hours) : hours >= 0]) && var.usage.store_gib >= 0 && var.usage.nat_gib >= 0 && var.usage.log_gib >= 0
    error_message = "usage: numbers of 0 or more."
  }
}

locals {
  hours_per_month = 730
  node_prices = {
    for name, group in var.node_groups : name =>
    lookup(var.prices.instance_hour, group.instance_types[0], -1) * (group.capacity_type == "SPOT" ? var.prices.spot_share : 1)
  }
  node_hours = { for name, group in var.node_groups : name => lookup(var.usage.node_hours, name, group.min_size * local.hours_per_month) }
  num_nats   = length(local.nat_zones)

  monthly = merge(
    { for name, group in var.node_groups : "nodes ${name} (${group.instance_types[0]})" => local.node_hours[name] * local.node_prices[name] },
    { for name, group in var.node_groups : "disks ${name}" => local.node_hours[name] / local.hours_per_month * group.disk_gib * var.prices.ebs_gib_month },
    {
      "EKS control plane"    = local.hours_per_month * var.prices.eks_hour
      "NAT gateways"         = local.hours_per_month * local.num_nats * (var.prices.nat_hour + var.prices.public_address_hour)
      "NAT traffic"          = var.usage.nat_gib * var.prices.nat_gib
      "S3"                   = var.usage.store_gib * var.prices.s3_gib_month
      "PostgreSQL instance"  = local.hours_per_month * lookup(var.prices.instance_hour, var.database.instance_class, -1) * (var.database.multi_az ? 2 : 1)
      "PostgreSQL storage"   = var.database.storage_gib * var.prices.database_gib_month * (var.database.multi_az ? 2 : 1)
      "KMS keys and secrets" = 2 * var.prices.kms_key_month + (length(local.secrets) + 1) * var.prices.secret_month
      "CloudWatch logs"      = var.usage.log_gib * var.prices.cloudwatch_gib_month
    },
  )
  everything_runs_usd_per_hour = sum([for name, group in var.node_groups : group.max_size * local.node_prices[name]])
}

check "prices_are_known" {
  assert {
    condition = alltrue([for price in values(local.node_prices) : price > 0]) && contains(keys(var.prices.instance_hour), var.database.instance_class)
    error_message = join(" ", [
      "No price for:", join(", ", setsubtract(
        concat([for group in var.node_groups : group.instance_types[0]], [var.database.instance_class]), keys(var.prices.instance_hour)
      )), "- add it to prices.instance_hour, or the cost table is wrong."
    ])
  }
}

output "cost" {
  description = "USD per month by item, their sum per month and per hour, and nodes per hour if every group runs at its maximum."
  value = {
    prices                    = "${var.prices.as_of}: ${var.prices.source}"
    usd_per_month             = { for item, usd in local.monthly : item => floor(usd * 100 + 0.5) / 100 }
    total_usd_per_month       = floor(sum(values(local.monthly)) * 100 + 0.5) / 100
    total_usd_per_hour        = floor(sum(values(local.monthly)) / local.hours_per_month * 10000 + 0.5) / 10000
    max_nodes_usd_per_hour    = floor(local.everything_runs_usd_per_hour * 10000 + 0.5) / 10000
    node_usd_per_hour         = local.node_prices
    node_hours_assumed        = local.node_hours
    not_in_the_table          = ["requests to S3", "traffic to the internet and between zones", "load balancers", "CloudWatch queries", "support"]
    assumed_hours_per_month   = local.hours_per_month
    assumed_spot_price_factor = var.prices.spot_share
  }
}
