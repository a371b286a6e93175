"""Server-side sessions in Redis, without Flask."""
