"""What every door calls: embed, add, search and delete, with batching and admission."""
