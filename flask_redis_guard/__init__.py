"""A Redis client for Flask behind a circuit breaker that fails closed."""
