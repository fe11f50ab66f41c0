"""Training of the student: losses, objective, trainer, initialization and recorded answers of the teacher."""
