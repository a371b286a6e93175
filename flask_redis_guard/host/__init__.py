"""What the workers of one host share; no Redis, no Flask."""
