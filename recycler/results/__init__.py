"""Results of a run: front, documents, attribution, notices, report."""
