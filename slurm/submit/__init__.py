"""Submitting: options, validation before anything is queued, and the launcher."""
