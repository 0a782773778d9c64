"""Measures relays: a load generator that speaks Part 1 of the relay protocol, controls, and reports."""
