"""Vocabularies of members brought to one."""
