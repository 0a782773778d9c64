"""Parsers against bytes that nobody meant for them: see `targets`."""
