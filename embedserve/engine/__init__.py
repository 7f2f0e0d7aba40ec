"""What the services call: embed, add, search and delete, with batching and admission."""
