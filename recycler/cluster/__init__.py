"""Workers that score trials, and Ray, which places them."""
