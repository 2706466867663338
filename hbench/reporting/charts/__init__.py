"""Charts of results, by kind; each takes a result and the path of the PNG file to write."""
