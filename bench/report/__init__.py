"""Records of runs, and how they are shown: verdicts, provenance, tables and pictures."""
