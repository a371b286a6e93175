"""Rate limits and concurrency limits of requests."""
