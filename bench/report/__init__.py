"""What is kept of a run, and how it is shown: records, verdicts, tables and pictures."""
