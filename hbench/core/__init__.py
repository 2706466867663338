"""The paper's mathematics: it reads and writes no file, and knows no process group."""
