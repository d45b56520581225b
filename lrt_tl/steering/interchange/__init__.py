"""Steering vectors in other people's formats, in and out: a module a format."""
