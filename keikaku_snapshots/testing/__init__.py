"""What the pytest plugin does: private databases from a snapshot, back at the start after each test."""
