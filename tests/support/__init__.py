"""Real servers, real faults and real processes for the tests."""

from tests.support.apps import GunicornApp, run_python
from tests.support.faults import DrippingServer, HandshakeStaller, MalformedServer, SilentServer
from tests.support.proxy import Proxy, TLSIdentity
from tests.support.servers import RedisServer
from tests.support.topologies import ClusterSetup, SentinelSetup
from tests.support.waiting import eventually

__all__ = [
    "ClusterSetup",
    "DrippingServer",
    "GunicornApp",
    "HandshakeStaller",
    "MalformedServer",
    "Proxy",
    "RedisServer",
    "SentinelSetup",
    "SilentServer",
    "TLSIdentity",
    "eventually",
    "run_python",
]
