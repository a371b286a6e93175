"""Real servers, real faults and real processes for the tests."""

from tests.support.servers import RedisServer
from tests.support.topologies import ClusterSetup, SentinelSetup
from tests.support.waiting import eventually

__all__ = ["ClusterSetup", "RedisServer", "SentinelSetup", "eventually"]
