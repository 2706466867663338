"""What lies on disk: runs, weights, results, data sets and pictures."""
