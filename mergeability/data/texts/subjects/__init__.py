"""Subjects of text tasks: one module each, whose `SUBJECT` says what its classes and texts are."""
