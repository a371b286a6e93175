"""Rate limiting on any Redis client."""
