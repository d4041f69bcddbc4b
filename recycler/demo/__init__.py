"""A small pool that is really trained: a builder to read and copy."""
