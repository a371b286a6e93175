"""Where Redis is: one server, sentinels, a cluster, or the in-memory store of development."""
