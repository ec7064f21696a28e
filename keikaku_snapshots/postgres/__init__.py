"""The foundation: one PostgreSQL server. Knows nothing of snapshots, datasets and patches."""
