"""What an inspection finds before anything is spent: needs and verdicts."""
