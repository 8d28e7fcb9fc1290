"""What happens at 1 TB, 100 TB and 10**10 samples: measured on sparse shards, simulated for object storage."""
