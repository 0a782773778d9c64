"""How this host is reached from elsewhere: what is asked, of whom, and what came of it.

stun_servers   names, and the addresses behind them
stun_client    one question and its answer, over any socket that can send
stun_answers   what servers say of WireGuard's port, all of them asked at one time
stun_look      the further questions that tell a NAT's kind apart: mapping, filtering, lifetime
gateway        a port mapping of the gateway's: UPnP, NAT-PMP, PCP
cloud          what a cloud's metadata says
survey         all of it, in order, and what is kept when something fails
"""
