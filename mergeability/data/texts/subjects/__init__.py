"""Subjects of text tasks: each has a module, whose `SUBJECT` defines the classes and texts of the subject."""
