"""What is told about the server: metrics, logs, traces."""
