"""What is made of a run's events: streams, progress, and more to come."""
