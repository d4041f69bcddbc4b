"""The sandbox that runs generated code."""
