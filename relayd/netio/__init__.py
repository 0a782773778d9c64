"""Sockets, fast under trio: an epoll inside one task, batched datagrams, bounded queues."""
