"""The edge of the service: keys, limits, drain, retries, logs and metrics, as ASGI middleware around the API."""
