"""Data shards, loss, schedule and a training loop that resumes bit for bit."""
