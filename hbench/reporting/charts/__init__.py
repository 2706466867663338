"""Charts by kind of result; each takes a result and the path of the PNG file to write."""
