"""What all services share in answering calls: limits, minimum rate, requests, streams, responses."""
