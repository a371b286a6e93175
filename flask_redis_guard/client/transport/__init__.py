"""Sockets, connections and the pool: what one operation waits for, bounded by its deadline."""
