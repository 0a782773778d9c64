"""Where the agent learns of interface, peers and relay: a file, an existing interface, a cluster."""
