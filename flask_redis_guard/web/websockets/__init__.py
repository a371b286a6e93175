"""Limits of WebSocket connections and messages."""
