"""Learning to learn: a teacher and a student unrolled, and the outer loop that trains the rule of the student."""
