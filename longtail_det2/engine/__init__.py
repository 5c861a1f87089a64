"""Trainers, launchers and hooks."""
