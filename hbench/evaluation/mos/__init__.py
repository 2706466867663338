"""Mean opinion score: the study that people mark, and the score of their marks."""
