"""The paper's mathematics: reads and writes no file, and knows no process group."""
