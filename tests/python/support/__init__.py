"""What the tests share: problems, references, tolerances and runs. It contains no test."""
