"""Claims of papers as programs: each study runs, compares, and reports what reproduced and what did not."""
