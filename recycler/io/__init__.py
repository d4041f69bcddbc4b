"""Files and text: atomic writes, strict YAML, shipped files, redaction."""
