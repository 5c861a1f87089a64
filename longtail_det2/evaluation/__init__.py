"""Official metrics."""
