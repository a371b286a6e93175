"""The guarded redis-py client; knows nothing of Flask."""
