"""Readers, registration and generators of data sets."""
