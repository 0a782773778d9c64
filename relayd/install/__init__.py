"""`relayd install-service`: systemd's units, written, brought up to date, and removed."""
