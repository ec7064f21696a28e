"""Door: what runs without anybody watching. `refresh` makes snapshots anew, `check` looks whether it did."""
