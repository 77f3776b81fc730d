"""Serial buses: packets as pure functions of bytes, a port with deadlines, and the bus that trusts neither."""
