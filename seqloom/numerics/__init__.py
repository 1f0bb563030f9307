"""Number formats and the table that assigns them to modules."""
