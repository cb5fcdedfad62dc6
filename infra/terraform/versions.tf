# Terraform 1.11 is the first with write-only arguments, by which passwords stay out of the state.
terraform {
  required_version = ">= 1.11.0, < 2.0.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100.0"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = merge({ project = var.name, managed-by = "terraform" }, var.tags)
  }
}
