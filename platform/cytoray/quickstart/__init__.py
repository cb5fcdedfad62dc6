"""All stages on one machine with one command: ingest, pretrain, fine-tune, evaluate, register, serve, query."""
