"""The mesh as custom resources of Kubernetes: how they are read, what they mean, and what an agent writes.

client (HTTP) -> follower (list and watch) -> listing (pure) -> resources -> mesh (pure) -> source
source -> own_peer (pure: what this node's resource should be) -> client
publisher -> report (pure: its status, and when to write it) -> client
"""
