"""Who may call: TLS, tokens, and the role that each call needs."""
