"""What makes pictures and pages from results."""
