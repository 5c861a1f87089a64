"""Training samplers: pure functions of a seed and the number of ids already drawn."""
