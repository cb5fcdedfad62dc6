"""Model versions with lineage and aliases, kept in MLflow."""
