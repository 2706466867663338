"""Files on disk: runs, weights, results, data sets and pictures."""
