# IAM roles of service accounts: what each part of cytoray may do with which prefix, and nothing else.
# Policies are written with jsonencode, not as data sources, so that `terraform test` reads the very text without an account.

locals {
  # bucket/prefix. `write` creates and replaces, `delete` is apart: training cannot delete a registered model.
  grants = {
    ingest = {
      read   = ["store/corpora"]
      write  = ["store/corpora"]
      delete = ["store/corpora"]
    }
    train = {
      read   = ["store/corpora", "store/runs", "models/mlflow"]
      write  = ["store/runs", "models/mlflow"]
      delete = ["store/runs"]
    }
    serve = {
      read   = ["store/corpora", "store/jobs", "models/mlflow"]
      write  = ["store/jobs"]
      delete = ["store/jobs"]
    }
    mlflow = {
      read   = ["models/mlflow"]
      write  = ["models/mlflow"]
      delete = ["models/mlflow"]
    }
  }
  bucket_arns = { for key, bucket in aws_s3_bucket.main : key => "arn:${local.partition}:s3:::${bucket.bucket}" }
  source_arns = [for bucket in var.source_buckets : "arn:${local.partition}:s3:::${bucket}"]

  # bucket/prefix -> arn:…:bucket/prefix/*
  object_arns = {
    for entry in distinct(flatten([for grant in local.grants : grant.read])) :
    entry => "${local.bucket_arns[split("/", entry)[0]]}/${split("/", entry)[1]}/*"
  }

  secrets_of = {
    ingest = []
    train  = []
    serve  = [aws_secretsmanager_secret.main["api-keys"].arn]
    mlflow = [
      aws_secretsmanager_secret.main["mlflow-admin"].arn,
      aws_secretsmanager_secret.main["mlflow-session"].arn,
      aws_db_instance.mlflow.master_user_secret[0].secret_arn,
    ]
  }

  statements = {
    for role, grant in local.grants : role => concat(
      [
        for bucket in distinct([for entry in grant.read : split("/", entry)[0]]) : {
          Sid      = "List${title(bucket)}"
          Effect   = "Allow"
          Action   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
          Resource = [local.bucket_arns[bucket]]
          Condition = { StringLike = { "s3:prefix" = flatten([
            for entry in grant.read : [split("/", entry)[1], "${split("/", entry)[1]}/*"] if split("/", entry)[0] == bucket
          ]) } }
        }
      ],
      [
        { Sid = "Read", Effect = "Allow", Action = ["s3:GetObject"], Resource = [for entry in grant.read : local.object_arns[entry]] },
        {
          Sid      = "Write"
          Effect   = "Allow"
          Action   = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
          Resource = [for entry in grant.write : local.object_arns[entry]]
        },
        { Sid = "Delete", Effect = "Allow", Action = ["s3:DeleteObject"], Resource = [for entry in grant.delete : local.object_arns[entry]] },
        {
          Sid       = "UseKeyThroughS3"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource  = [aws_kms_key.data.arn]
          Condition = { StringEquals = { "kms:ViaService" = ["s3.${var.region}.amazonaws.com"] } }
        },
      ],
      [for statement in [
        { Sid = "ListSources", Effect = "Allow", Action = ["s3:ListBucket"], Resource = local.source_arns },
        { Sid = "ReadSources", Effect = "Allow", Action = ["s3:GetObject"], Resource = [for arn in local.source_arns : "${arn}/*"] },
      ] : statement if role == "ingest" && length(var.source_buckets) > 0],
      [for statement in [
        {
          Sid      = "ReadSecrets"
          Effect   = "Allow"
          Action   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
          Resource = local.secrets_of[role]
        },
        {
          Sid       = "DecryptSecrets"
          Effect    = "Allow"
          Action    = ["kms:Decrypt"]
          Resource  = [aws_kms_key.data.arn]
          Condition = { StringEquals = { "kms:ViaService" = ["secretsmanager.${var.region}.amazonaws.com"] } }
        },
      ] : statement if contains(["serve", "mlflow"], role)],
    )
  }

  # The autoscaler may look at everything, as these calls know no resources, and change the groups of this cluster only.
  autoscaler_statements = [
    {
      Sid    = "Look"
      Effect = "Allow"
      Action = [
        "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLaunchConfigurations",
        "autoscaling:DescribeScalingActivities", "autoscaling:DescribeTags", "ec2:DescribeImages", "ec2:DescribeInstanceTypes",
        "ec2:DescribeLaunchTemplateVersions", "ec2:GetInstanceTypesFromInstanceRequirements",
      ]
      Resource = ["*"]
    },
    {
      Sid      = "LookAtNodeGroups"
      Effect   = "Allow"
      Action   = ["eks:DescribeNodegroup"]
      Resource = ["arn:${local.partition}:eks:${var.region}:${data.aws_caller_identity.current.account_id}:nodegroup/${var.name}/*"]
    },
    {
      Sid       = "Scale"
      Effect    = "Allow"
      Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
      Resource  = ["arn:${local.partition}:autoscaling:${var.region}:${data.aws_caller_identity.current.account_id}:autoScalingGroup:*"]
      Condition = { StringEquals = { "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}" = "owned" } }
    },
  ]

  policies = merge(
    { for role, statements in local.statements : role => jsonencode({ Version = "2012-10-17", Statement = statements }) },
    { autoscaler = jsonencode({ Version = "2012-10-17", Statement = local.autoscaler_statements }) },
  )

  # Who may assume which role: namespace/service account.
  service_accounts = merge(
    { for role in keys(local.grants) : role => "${var.namespace}:${role == "mlflow" ? "mlflow" : "cytoray-${role}"}" },
    { autoscaler = "kube-system:cluster-autoscaler", disks = "kube-system:ebs-csi-controller-sa" },
  )
  issuer = replace(aws_eks_cluster.main.identity[0].oidc[0].issuer, "https://", "")
}

resource "aws_iam_role" "service_account" {
  for_each             = local.service_accounts
  name                 = "${var.name}-${each.key}"
  max_session_duration = 43200
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = aws_iam_openid_connect_provider.cluster.arn }
      Condition = { StringEquals = {
        "${local.issuer}:aud" = "sts.amazonaws.com"
        "${local.issuer}:sub" = "system:serviceaccount:${each.value}"
      } }
    }]
  })
}

resource "aws_iam_role_policy" "service_account" {
  for_each = local.policies
  name     = each.key
  role     = aws_iam_role.service_account[each.key].id
  policy   = each.value
}

resource "aws_iam_role_policy_attachment" "disks" {
  role       = aws_iam_role.service_account["disks"].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}
