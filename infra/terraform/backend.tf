# Where the state is kept. Fill it in with `terraform init -backend-config=backend.hcl`:
#   bucket = "my-terraform-states", key = "cytoray/production.tfstate", region = "us-east-1"
terraform {
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}
