"""Redis Cluster as the store: each command is sent to the primary that owns its key.

transport.py            `ClusterTransport`: commands, redirects, and the owners of the slots
shard_subscriptions.py  messages of single streams, which stay on the node that has the stream
url.py                  `redis+cluster://host:port,host:port`
"""
