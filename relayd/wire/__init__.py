"""The relay protocol, as values: bytes and `now` in, values out. No sockets, no clock, no log."""
