"""The Mean Opinion Score: the study that people mark, and the score of their marks."""
