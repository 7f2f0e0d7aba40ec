"""What every call meets: limits, the minimum rate, streams, responses."""
