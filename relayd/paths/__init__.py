"""Where a peer may be reached, and which way its packets go. Pure: values and `now` in, decisions out.

candidates   addresses, ours and a peer's, and which of them are worth a Ping
checklist    one peer's pairs: what is pinged when, and what came of it
selector     relay or direct: the table of all reasons to change
pathfinder    one peer: the three above, and the sealed messages between both ends
"""
