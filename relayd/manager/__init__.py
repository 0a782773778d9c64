"""The service manager that started this process: what it gave us, and what it wants to be told."""
