"""The machine and the terminal: processes, devices, progress."""
