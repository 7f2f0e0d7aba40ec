"""What the server reports about itself: metrics, logs, traces."""
