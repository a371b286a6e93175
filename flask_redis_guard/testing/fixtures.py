"""The fixtures of the pytest plugin, for suites that name their plugins.

``pytest_plugins = ["flask_redis_guard.testing.fixtures"]`` in a ``conftest.py`` brings them
in where pytest does not look for plugins by itself.
"""

from flask_redis_guard_pytest import redis_audit, redis_hang, redis_outage, redis_read_only

__all__ = ["redis_audit", "redis_hang", "redis_outage", "redis_read_only"]
